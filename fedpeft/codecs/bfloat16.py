"""Bfloat16: 2 bytes an element, rounded to nearest even; the range of float32 with 8 bits of precision."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from fedpeft.codecs.base import NOTHING, Codec, Common
from fedpeft.codecs.layout import narrowed, read, require_float32, write
from fedpeft.config.base import Frozen
from fedpeft.tensors import Spec, Tensors

__all__ = ["Bfloat16", "Options", "make"]

_RELATIVE = 2.0**-8
"""Half a unit in the last of 8 bits."""
_ABSOLUTE = 2.0**-134
"""Half the smallest denormal, 2**-133."""


@final
class Options(Frozen):
    """Nothing to choose."""


@final
@dataclass(frozen=True)
class Bfloat16(Codec):
    """Each finite element x arrives within 2**-8 * abs(x) + 2**-134; NaN and infinity arrive as such."""

    name = "bfloat16"

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Round and pack float32 tensors.

        Raises:
            TensorMismatchError: a tensor is not float32; names it.
        """
        require_float32(tensors.manifest(), codec=self.name)
        return write(tensors.map(lambda tensor: narrowed(tensor, torch.bfloat16)))

    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest, widened to float32 without further loss.

        Raises:
            WireError: the length or the header is not this manifest's.
            TensorMismatchError: the manifest itself is not all float32.
        """
        require_float32(manifest, codec=self.name)
        packed = [replace(spec, dtype="bfloat16") for spec in manifest]
        return read(data, packed, codec=self.name).to(torch.float32)

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return 2**-8 * norm + 2**-134 * sqrt(number of elements): the triangle inequality over the elements."""
        return _RELATIVE * tensors.norm() + _ABSOLUTE * math.sqrt(tensors.num_elements)


def make(options: Options) -> Codec:
    """Return the codec."""
    return Bfloat16()
