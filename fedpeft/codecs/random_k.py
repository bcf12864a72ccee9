"""Random-k: of each class of tensors so many entries, drawn from a seed that both sides share, so no place travels.

The seed is Common.seed: derived from the experiment's seed, the direction, the round and, for what a client sends, the
client, so that every body draws anew. From it and the class's name comes the key of a Philox4x64 stream; its numbers,
modulo n, are the places, until enough different ones are drawn (of more than half, the ones left out are drawn). The
bias of the modulo is below n / 2**64. With ``rescale`` values are sent times n/k, so that what arrives is right in the
mean over seeds; without it, nothing arrives larger than it was. Stich, Cordonnier, Jaggi (2018), arXiv 1809.07599.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from fedpeft import seeds
from fedpeft.codecs.base import NOTHING, Codec, Common, Sparse
from fedpeft.codecs.chain import Chain
from fedpeft.codecs.classes import Class, KeptInClasses, Sparsity, class_seal, classes
from fedpeft.codecs.exact import Exact
from fedpeft.codecs.frame import Reader
from fedpeft.codecs.layout import require_finite, require_float32
from fedpeft.codecs.selection import Places, place_type
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Spec, Tensors

__all__ = ["Options", "RandomK", "make"]

_LARGEST = torch.finfo(torch.float32).max


@final
class Options(Sparsity):
    """How much is kept."""

    rescale: bool = False
    """Send values times n/k: unbiased over seeds, at the price of a larger error in each round."""


@final
@dataclass(frozen=True)
class RandomK(Sparse):
    """Kept entries arrive bit for bit (or times n/k), all others as 0."""

    options: Options = field(default_factory=Options)

    name = "random_k"

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Pack float32 tensors.

        Raises:
            TensorMismatchError: a tensor is not float32, or holds a NaN or infinity; names it.
            UnsupportedError: no seed in common.
        """
        return Chain((self,), Exact()).encode(tensors, common)

    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest.

        Raises:
            WireError: the bytes are not an encoding of this manifest under this seed.
            TensorMismatchError: the manifest itself is not all float32.
            UnsupportedError: no seed in common.
        """
        return Chain((self,), Exact()).decode(data, manifest, common)

    def grows(self) -> str | None:
        """Return why fed-back errors would grow: rescaled values, or a class of which nothing is ever sent."""
        if self.options.rescale:
            return "rescale = true sends each kept entry n/k times as large; leave rescale out"
        return self.options.grows()

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return the norm; with rescale, that times n/k - 1 of the class where this is largest."""
        groups = classes(tensors.manifest(), common)
        worst = max((self._factor(group) - 1 for group in groups), default=0.0) if self.options.rescale else 0.0
        return max(1.0, worst) * (1 + 2.0**-20) * tensors.norm()

    def split(self, tensors: Tensors, common: Common = NOTHING) -> tuple[bytes, Tensors]:
        """Return the seal alone, and the values.

        Raises:
            TensorMismatchError: a tensor is not float32, or holds a NaN or infinity; names it.
            UnsupportedError: no seed in common.
        """
        manifest = tensors.manifest()
        require_float32(manifest, codec=self.name)
        require_finite(tensors, codec=self.name)
        kept = self._drawn(manifest, common)
        values = kept.take(tensors)
        if self.options.rescale:
            factors = {spec.name: self._factor(group) for group, _ in kept.groups for spec in group.specs}
            values = Tensors((name, _times(value, factors[name])) for name, value in values.items())
        return class_seal(self.name, self.options, manifest, common, _seed(common)), values

    def places(self, head: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> KeptInClasses:
        """Draw the places again.

        Raises:
            WireError: the seal is not that of this manifest and seed.
            TensorMismatchError: the manifest itself is not all float32.
            UnsupportedError: no seed in common.
        """
        require_float32(manifest, codec=self.name)
        reader = Reader(head, codec=self.name)
        reader.sealed(class_seal(self.name, self.options, manifest, common, _seed(common)))
        reader.end()
        return self._drawn(tuple(manifest), common)

    def _drawn(self, manifest: tuple[Spec, ...], common: Common) -> KeptInClasses:
        groups = classes(manifest, common)
        keys = (seeds.derive(_seed(common), "random_k", group.name) for group in groups)
        drawn = (_draw(key, g.num_entries, self.options.num_kept(g)) for key, g in zip(keys, groups, strict=True))
        return KeptInClasses(manifest, tuple(zip(groups, drawn, strict=True)))

    def _factor(self, group: Class) -> float:
        return group.num_entries / max(1, self.options.num_kept(group))


def make(options: Options) -> Codec:
    """Return the codec."""
    return RandomK(options)


def _draw(key: int, num_entries: int, k: int) -> Places:
    """Return k ascending places below num_entries: as many as are missing are drawn at a time, so never too many."""
    stream, drawn = np.random.Philox(key=key), min(k, num_entries - k)
    mask, missing = np.zeros(num_entries, np.bool_), drawn
    while missing:
        mask[stream.random_raw(missing) % np.uint64(num_entries)] = True
        missing = drawn - int(np.count_nonzero(mask))
    return np.flatnonzero(mask if drawn == k else ~mask).astype(place_type(num_entries))


def _seed(common: Common) -> int:
    if common.seed is None:
        raise UnsupportedError("codec random_k draws places from a seed that both sides share, and none was given")
    return common.seed


def _times(values: Tensor, factor: float) -> Tensor:
    return (values.to(torch.float64) * factor).clamp(-_LARGEST, _LARGEST).to(torch.float32)
