"""Float16: 2 bytes an element, rounded to nearest even; 11 bits of precision between 6e-8 and 65504."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from fedpeft.codecs.base import NOTHING, Codec, Common
from fedpeft.codecs.layout import narrowed, read, require_finite, require_float32, write
from fedpeft.config.base import Frozen
from fedpeft.errors import TensorMismatchError, WireError
from fedpeft.tensors import Spec, Tensors

__all__ = ["Float16", "Options", "make"]

_RELATIVE = 2.0**-11
"""Half a unit in the last of 11 bits."""
_ABSOLUTE = 2.0**-25
"""Half the smallest denormal, 2**-24."""
_LARGEST = torch.finfo(torch.float16).max


@final
class Options(Frozen):
    """Nothing to choose."""


@final
@dataclass(frozen=True)
class Float16(Codec):
    """Each x arrives within 2**-11 * abs(x) + 2**-25, or as 65504 with its sign where it is larger."""

    name = "float16"

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Round and pack float32 tensors.

        Raises:
            TensorMismatchError: a tensor is not float32, or holds a NaN or infinity; names it.
        """
        require_float32(tensors.manifest(), codec=self.name)
        require_finite(tensors, codec=self.name)
        return write(tensors.map(lambda tensor: narrowed(tensor, torch.float16)))

    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest, widened to float32 without further loss.

        Raises:
            WireError: the length or the header is not this manifest's, or an entry is NaN or infinite.
            TensorMismatchError: the manifest itself is not all float32.
        """
        require_float32(manifest, codec=self.name)
        packed = [replace(spec, dtype="float16") for spec in manifest]
        arrived = read(data, packed, codec=self.name).to(torch.float32)
        try:
            return arrived.require_finite(where=f"codec {self.name}")
        except TensorMismatchError as error:
            raise WireError(str(error)) from error

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return 2**-11 * norm + 2**-25 * sqrt(number of elements) + the norm of what lies above 65504."""
        above = tensors.to(torch.float64).map(lambda tensor: (tensor.abs() - _LARGEST).clamp(min=0.0))
        return _RELATIVE * tensors.norm() + _ABSOLUTE * math.sqrt(tensors.num_elements) + above.norm()


def make(options: Options) -> Codec:
    """Return the codec."""
    return Float16()
