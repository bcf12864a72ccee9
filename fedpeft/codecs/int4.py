"""Int4: two elements a byte and one float32 scale a block.

Round to nearest after division by the block's largest magnitude / 7, symmetric around 0; as in Dettmers, Lewis,
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

__all__ = ["Int4", "Options", "make"]

_LEVELS = 7


@final
class Options(Frozen):
    """How many entries share a scale."""

    block: int = Field(default=64, ge=1, le=1 << 20)
    """Entries of one flattened tensor to a scale; fewer are more exact and cost 4 bytes a block."""


@final
@dataclass(frozen=True)
class Int4(Codec):
    """Each x arrives within max abs(block) / 14, and a rounding error of float32."""

    options: Options = field(default_factory=Options)

    name = "int4"

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Round and pack float32 tensors: a seal, all scales, all numbers.

        Raises:
            TensorMismatchError: a tensor is not float32, or holds a NaN or infinity; names it.
        """
        require_float32(tensors.manifest(), codec=self.name)
        require_finite(tensors, codec=self.name)
        packed = [quantized(tensor, block=self.options.block, levels=_LEVELS) for tensor in tensors.values()]
        scales = [raw(scale) for _, scale in packed]
        return b"".join([self._seal(tensors.manifest()), *scales, *(_pack(codes) for codes, _ in packed)])

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
        """Return the root of the sum over blocks of size * (max abs(block) / 14)^2, and a little for rounding."""
        return bound(tensors, block=self.options.block, levels=_LEVELS)

    def _seal(self, manifest: Sequence[Spec]) -> bytes:
        return seal(self.name, self.options, manifest)


def make(options: Options) -> Codec:
    """Return the codec."""
    return Int4(options)


def _pack(codes: torch.Tensor) -> bytes:
    """Return each number plus 8 in four bits, the first of two in the lower ones; what fills the last byte is a 0."""
    shifted = (codes + 8).to(torch.uint8).numpy()
    even = np.pad(shifted, (0, len(shifted) % 2), constant_values=8)
    packed = even[::2] | even[1::2] << 4
    return bytes(packed)


def _codes(reader: Reader, spec: Spec) -> torch.Tensor:
    """Take a tensor's numbers; -8, which is never sent, is refused, and so is another filling."""
    packed = reader.array("u1", (spec.num_elements + 1) // 2, "numbers")
    codes = np.empty(2 * len(packed), np.int8)
    codes[::2], codes[1::2] = packed & 15, packed >> 4
    codes -= 8
    if bool((codes < -_LEVELS).any()) or codes[spec.num_elements :].any():
        raise reader.fault(f"numbers of {spec.name[:80]!r} with a -8, or a filling that is not 0")
    return torch.from_numpy(codes[: spec.num_elements])
