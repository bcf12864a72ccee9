"""Top-k: of each class of tensors the entries of largest magnitude, their places entropy-coded, their values float32.

A class keeps exactly round(density n) of its n entries (all that are not 0 if they are fewer); of equal magnitudes the
first ones. A chain such as ``top_k`` then ``int8`` packs the values further. Bits: n H(k/n) for the places, 32 k for
the values. Known as gradient dropping: Aji, Heafield (2017), arXiv 1704.05021.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from fedpeft.codecs.base import NOTHING, Codec, Common, Sparse
from fedpeft.codecs.chain import Chain
from fedpeft.codecs.classes import KeptInClasses, Sparsity, class_seal, classes, entropy_bits, flat_class
from fedpeft.codecs.exact import Exact
from fedpeft.codecs.frame import Reader
from fedpeft.codecs.layout import require_finite, require_float32
from fedpeft.codecs.positions import read_positions, write_positions
from fedpeft.codecs.selection import largest
from fedpeft.tensors import Spec, Tensors

__all__ = ["Options", "TopK", "make"]

_SLACK = 1 + 2.0**-40


@final
class Options(Sparsity):
    """How much is kept."""


@final
@dataclass(frozen=True)
class TopK(Sparse):
    """Kept entries arrive bit for bit, all others as 0."""

    options: Options = field(default_factory=Options)

    name = "top_k"

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Pack float32 tensors.

        Raises:
            TensorMismatchError: a tensor is not float32, or holds a NaN or infinity; names it.
        """
        return Chain((self,), Exact()).encode(tensors, common)

    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest.

        Raises:
            WireError: the bytes are not an encoding of this manifest.
            TensorMismatchError: the manifest itself is not all float32.
        """
        return Chain((self,), Exact()).decode(data, manifest, common)

    def grows(self) -> str | None:
        """Return why fed-back errors would grow: a class of which nothing is ever sent."""
        return self.options.grows()

    def entropy_bits(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return n H(k/n) + 32 k for each class."""
        return entropy_bits(tensors, common, each=32)

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return sqrt(1 - k/n) * norm for each class, put together: what is left out is smaller than what is kept."""
        total = 0.0
        for group in classes(tensors.manifest(), common):
            if group.num_entries:
                left_out = 1 - self.options.num_kept(group) / group.num_entries
                total += left_out * tensors.select(spec.name for spec in group.specs).norm() ** 2
        return math.sqrt(total) * _SLACK

    def split(self, tensors: Tensors, common: Common = NOTHING) -> tuple[bytes, Tensors]:
        """Return the places, encoded class by class, and the values there.

        Raises:
            TensorMismatchError: a tensor is not float32, or holds a NaN or infinity; names it.
        """
        manifest = tensors.manifest()
        require_float32(manifest, codec=self.name)
        require_finite(tensors, codec=self.name)
        groups = classes(manifest, common)
        found = tuple((group, largest(flat_class(tensors, group), self.options.num_kept(group))) for group in groups)
        parts = [write_positions(places, group.num_entries) for group, places in found]
        head = b"".join([class_seal(self.name, self.options, manifest, common), *parts])
        return head, KeptInClasses(manifest, found).take(tensors)

    def places(self, head: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> KeptInClasses:
        """Read the places.

        Raises:
            WireError: the bytes are not places in this manifest.
            TensorMismatchError: the manifest itself is not all float32.
        """
        require_float32(manifest, codec=self.name)
        reader = Reader(head, codec=self.name)
        reader.sealed(class_seal(self.name, self.options, manifest, common))
        found = tuple(
            (group, read_positions(reader, group.num_entries, most=self.options.num_kept(group)))
            for group in classes(manifest, common)
        )
        reader.end()
        return KeptInClasses(tuple(manifest), found)


def make(options: Options) -> Codec:
    """Return the codec."""
    return TopK(options)
