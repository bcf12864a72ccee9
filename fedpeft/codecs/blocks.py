"""Whole numbers with one float32 scale a block: what int8 and int4 share.

A block is so many entries of one flattened tensor, the last one of a tensor perhaps fewer. Its scale is its largest
magnitude / levels, and each entry becomes the nearest whole multiple of it, ties to even. So an entry arrives within
half the scale: max abs(block) / (2 levels).
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedpeft.codecs.frame import Reader
from fedpeft.codecs.selection import Floats
from fedpeft.tensors import Spec, Tensors

__all__ = ["bound", "dequantized", "num_blocks", "quantized", "read_scales"]

_HALF = 0.5 + 2.0**-14
"""Half a scale, and what division and multiplication in float32 add to it."""
_ABSOLUTE = 2.0**-143
"""What a scale that is denormal, and so coarse, adds."""
_CHUNK = 1 << 17
"""Entries whose temporaries stay in the cache."""


def num_blocks(spec: Spec, block: int) -> int:
    """Return how many scales a tensor has."""
    return -(-spec.num_elements // block)


def quantized(tensor: Tensor, *, block: int, levels: int) -> tuple[Tensor, Tensor]:
    """Return whole numbers in [-levels, levels], int8 of shape (n,), and the scales, float32 of shape (blocks,)."""
    flat = tensor.detach().cpu().reshape(-1)
    codes, scales = torch.empty(flat.numel(), dtype=torch.int8), torch.empty(-(-flat.numel() // block))
    for entries, blocks in _chunks(flat.numel(), block):
        rows = _rows(flat[entries], block)
        scale = (rows.abs().amax(1) / levels).clamp_(max=_largest_scale(levels))
        scales[blocks] = scale
        safe = torch.where(scale > 0, scale, 1.0)
        whole = (rows / safe.unsqueeze(1)).round_().clamp_(-levels, levels)
        codes[entries] = (
            torch.where(scale.unsqueeze(1) > 0, whole, 0.0).reshape(-1)[: len(flat[entries])].to(torch.int8)
        )
    return codes, scales


def dequantized(codes: Tensor, scales: Floats, *, block: int, shape: tuple[int, ...]) -> Tensor:
    """Return each whole number times its block's scale, as float32 of the shape."""
    flat, factors = torch.empty(codes.numel()), torch.from_numpy(np.array(scales))
    for entries, blocks in _chunks(codes.numel(), block):
        rows = _rows(codes[entries].to(torch.float32), block)
        flat[entries] = (rows * factors[blocks].unsqueeze(1)).reshape(-1)[: len(codes[entries])]
    return flat.reshape(shape)


def read_scales(reader: Reader, manifest: Sequence[Spec], *, block: int, levels: int) -> list[Floats]:
    """Take each tensor's scales.

    Raises:
        WireError: too few bytes are left, or a scale is negative, not finite, or too large for its numbers.
    """
    found = []
    for spec in manifest:
        scales = reader.floats(num_blocks(spec, block), "scales", most=_largest_scale(levels))
        if bool(np.signbit(scales).any()):
            raise reader.fault(f"scales of {spec.name[:80]!r} with a negative one")
        found.append(scales)
    return found


def bound(tensors: Tensors, *, block: int, levels: int) -> float:
    """Return the root of the sum over blocks of size * (scale / 2)^2, and a little for rounding."""
    total = 0.0
    for tensor in tensors.values():
        flat = tensor.detach().cpu().reshape(-1)
        for entries, _ in _chunks(flat.numel(), block):
            largest = _rows(flat[entries], block).abs().amax(1).to(torch.float64)
            total += float((largest / levels).square().sum()) * block * _HALF**2
    return math.sqrt(total) + _ABSOLUTE * math.sqrt(tensors.num_elements)


def _chunks(num_entries: int, block: int) -> Iterator[tuple[slice, slice]]:
    """Yield the entries and the blocks of each chunk; chunks begin where blocks do."""
    rows = max(1, _CHUNK // block)
    for start in range(0, num_entries, rows * block):
        end = min(num_entries, start + rows * block)
        yield slice(start, end), slice(start // block, -(-end // block))


def _rows(flat: Tensor, block: int) -> Tensor:
    """Return the entries as rows of a block each, the last one filled up with 0."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % block)).reshape(-1, block)


def _largest_scale(levels: int) -> float:
    """Return a scale that no whole number up to levels takes beyond float32."""
    return float(np.nextafter(np.float32(np.finfo(np.float32).max / levels), np.float32(0)))
