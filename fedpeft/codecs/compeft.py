"""ComPEFT: of each class of tensors the entries of largest magnitude, of each its sign alone, and one scale a class.

Yadav, Choshen, Raffel, Bansal (2023), arXiv 2311.13171. What is packed is a round's change, never an adapter's values.
A class of n entries keeps exactly k = round(density n) of them (all that are not 0 if they are fewer), of equal
magnitudes the first; the authors' code keeps one more, and all that tie with it, which is not done here. Scales:

- ``mean_abs``: the mean magnitude of the kept entries, the best in L2: the error never exceeds the change;
- ``std``: the paper's alpha * std of all n entries (Bessel's). Above about 2 alpha_opt the error exceeds the change;
- ``dp_norm``: norm / sqrt(entries kept in all classes): the whole has this L2 norm and no scale travels.

Bits a class: n H(k/n) + k, and 60 bytes at most. A head is kept whole by default (benchmarks/bandwidth.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from pydantic import Field

from fedpeft.codecs.base import NOTHING, Codec, Common
from fedpeft.codecs.classes import Class, ClassName, Share, class_seal, classes, entropy_bits, flat_class, unflattened
from fedpeft.codecs.frame import Reader
from fedpeft.codecs.layout import require_finite, require_float32
from fedpeft.codecs.positions import read_positions, write_positions
from fedpeft.codecs.scaling import Scaling
from fedpeft.codecs.selection import Floats, Places, largest
from fedpeft.codecs.ternary import Bits, read_signs, scattered, std, toward_zero, write_signs
from fedpeft.errors import TensorMismatchError
from fedpeft.tensors import Spec, Tensors

__all__ = ["ComPEFT", "Options", "make"]

_LARGEST = float(np.finfo(np.float32).max)


@final
class Options(Scaling):
    """How much is kept, and how large it arrives."""

    densities: dict[ClassName, Share] = Field(default={"head": 1.0})
    """Other shares for some classes: A, B, head, other. Unless this is set every sign of a head travels: it is new, so
    all of it must move at once, and that is one bit an entry, as much as a quarter of them with their places."""


@final
@dataclass(frozen=True)
class ComPEFT(Codec):
    """Kept entries arrive as their sign times their class's scale, all others as 0."""

    options: Options = field(default_factory=Options)

    name = "compeft"
    changes_only = True

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Pack float32 tensors.

        Raises:
            TensorMismatchError: a tensor is not float32 or holds a NaN or infinity, or a class has no std; names it.
        """
        manifest = tensors.manifest()
        require_float32(manifest, codec=self.name)
        require_finite(tensors, codec=self.name)
        found, total = self._found(tensors, common)
        parts = [class_seal(self.name, self.options, manifest, common)]
        for group, flat, places in found:
            parts.append(write_positions(places, group.num_entries))
            if self.options.scale != "dp_norm":
                parts.append(np.array(self._scale(group, flat, places, total), "<f4").tobytes())
            parts.append(write_signs(flat[places]))
        return b"".join(parts)

    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest.

        Raises:
            WireError: the bytes are not an encoding of this manifest.
            TensorMismatchError: the manifest itself is not all float32.
        """
        require_float32(manifest, codec=self.name)
        reader, groups = Reader(data, codec=self.name), classes(manifest, common)
        reader.sealed(class_seal(self.name, self.options, manifest, common))
        found = [(group, *self._read(reader, group)) for group in groups]
        reader.end()
        shared = self._shared_scale(sum(len(places) for _, places, _, _ in found))
        flats = [
            (group, scattered(group.num_entries, places, negative, shared if scale is None else scale))
            for group, places, scale, negative in found
        ]
        return unflattened(manifest, flats)

    def grows(self) -> str | None:
        """Return why fed-back errors would grow: too large a scale, or a class of which nothing is ever sent."""
        return self.options.grows()

    def entropy_bits(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return n H(k/n) + k for each class, and its scale's 32."""
        return entropy_bits(tensors, common, each=1, shared=0 if self.options.scale == "dp_norm" else 32)

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return the root of the sum over classes of |x|^2 - 2 s (k/n) |x|_1 + k s^2, where k are kept at scale s.

        Exact would be the kept entries' own sum instead of (k/n) |x|_1, which is never more than that.
        """
        found, total = self._found(tensors, common)
        norm = tensors.norm()
        bound = norm**2
        for group, flat, places in found:
            scale = self._scale(group, flat, places, total)
            mean = float(np.abs(flat).mean(dtype=np.float64)) if len(places) else 0.0
            bound += len(places) * scale * (scale - 2 * mean)
        return math.sqrt(max(bound, 0.0)) + 2.0**-22 * norm + 2.0**-149 * math.sqrt(tensors.num_elements)

    def _found(self, tensors: Tensors, common: Common) -> tuple[list[tuple[Class, Floats, Places]], int]:
        """Return each class flat with its kept places, and how many are kept in all."""
        flats = [(group, flat_class(tensors, group)) for group in classes(tensors.manifest(), common)]
        found = [(group, flat, largest(flat, self.options.num_kept(group))) for group, flat in flats]
        return found, sum(len(places) for _, _, places in found)

    def _scale(self, group: Class, flat: Floats, places: Places, total: int) -> float:
        """Return the scale of a class, as float32 has it."""
        if not len(places):
            return 0.0
        if self.options.scale == "dp_norm":
            return self._shared_scale(total)
        if self.options.scale == "mean_abs":
            return float(np.float32(np.abs(flat[places]).mean(dtype=np.float64)))
        if len(flat) < 2:
            raise TensorMismatchError(f"codec {self.name}: class {group.name} has one entry, so no std; use mean_abs")
        return float(np.float32(min(_LARGEST, (self.options.alpha or 1.0) * std(flat))))

    def _shared_scale(self, total: int) -> float:
        """Return dp_norm's scale, rounded down so that the norm is never exceeded."""
        return toward_zero((self.options.norm or 0.0) / math.sqrt(total)) if total else 0.0

    def _read(self, reader: Reader, group: Class) -> tuple[Places, float | None, Bits]:
        places = read_positions(reader, group.num_entries, most=self.options.num_kept(group))
        scale = None if self.options.scale == "dp_norm" else float(reader.floats(1, "scale")[0])
        if scale is not None and (math.copysign(1.0, scale) < 0 or (scale and not len(places))):
            raise reader.fault(f"scale = {scale} for {len(places)} entries")
        return places, scale, read_signs(reader, len(places))


def make(options: Options) -> Codec:
    """Return the codec."""
    return ComPEFT(options)
