"""Int8: 1 byte an element and one float32 scale a block.

Round to nearest after division by the block's largest magnitude / 127, symmetric around 0; as in Dettmers, Lewis,
Shleifer, Zettlemoyer (2021), arXiv 2110.02861, without their non-linear code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from pydantic import Field

from fedpeft.codecs.base import NOTHING, Codec, Common
from fedpeft.codecs.blocks import bound, dequantized, quantized, read_scales
from fedpeft.codecs.frame import Reader, seal
from fedpeft.codecs.layout import require_finite, require_float32
from fedpeft.config.base import Frozen
from fedpeft.tensors import Spec, Tensors, raw

__all__ = ["Int8", "Options", "make"]

_LEVELS = 127


@final
class Options(Frozen):
    """How many entries share a scale."""

    block: int = Field(default=256, ge=1, le=1 << 20)
    """Entries of one flattened tensor to a scale; fewer are more exact and cost 4 bytes a block."""


@final
@dataclass(frozen=True)
class Int8(Codec):
    """Each x arrives within max abs(block) / 254, and a rounding error of float32."""

    options: Options = field(default_factory=Options)

    name = "int8"

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Round and pack float32 tensors: a seal, all scales, all numbers.

        Raises:
            TensorMismatchError: a tensor is not float32, or holds a NaN or infinity; names it.
        """
        require_float32(tensors.manifest(), codec=self.name)
        require_finite(tensors, codec=self.name)
        packed = [quantized(tensor, block=self.options.block, levels=_LEVELS) for tensor in tensors.values()]
        scales = [raw(scale) for _, scale in packed]
        return b"".join([self._seal(tensors.manifest()), *scales, *(raw(codes) for codes, _ in packed)])

    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest.

        Raises:
            WireError: the bytes are not an encoding of this manifest.
            TensorMismatchError: the manifest itself is not all float32.
        """
        require_float32(manifest, codec=self.name)
        reader = Reader(data, codec=self.name)
        reader.sealed(self._seal(manifest))
        scales = read_scales(reader, manifest, block=self.options.block, levels=_LEVELS)
        codes = [_codes(reader, spec) for spec in manifest]
        reader.end()
        return Tensors(
            (spec.name, dequantized(code, scale, block=self.options.block, shape=spec.shape))
            for spec, code, scale in zip(manifest, codes, scales, strict=True)
        )

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return the root of the sum over blocks of size * (max abs(block) / 254)^2, and a little for rounding."""
        return bound(tensors, block=self.options.block, levels=_LEVELS)

    def _seal(self, manifest: Sequence[Spec]) -> bytes:
        return seal(self.name, self.options, manifest)


def make(options: Options) -> Codec:
    """Return the codec."""
    return Int8(options)


def _codes(reader: Reader, spec: Spec) -> torch.Tensor:
    """Take a tensor's numbers; -128, which is never sent, is refused."""
    codes = reader.array("i1", spec.num_elements, "numbers")
    if bool((codes < -_LEVELS).any()):
        raise reader.fault(f"numbers of {spec.name[:80]!r} with a -128")
    return torch.from_numpy(np.array(codes))
