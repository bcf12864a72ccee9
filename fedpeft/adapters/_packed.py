"""Whole numbers of a few bits each, without gaps between them: how a quantised weight is stored."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["STORED", "packed", "stored_weights", "unpacked", "write_weights"]

STORED = "fedpeft_quantised.safetensors"
"""Of each layer: codes above their group's least one, packed, these least ones (int32), scales (float32), a width."""


def write_weights(folder: Path, layers: Mapping[str, tuple[Tensor, Tensor]], *, bits: int) -> None:
    """Write weights as codes (d_out, d_in), 2^bits from each group's least on, and scales (d_out, num_groups)."""
    found: dict[str, Tensor] = {}
    for name, (codes, scales) in layers.items():
        groups = codes.to(torch.int32).reshape(*scales.shape, -1)
        least = groups.amin(-1)
        found[f"{name}.codes"] = packed(groups - least[..., None], bits=bits)
        found |= {f"{name}.least": least, f"{name}.scales": scales.contiguous()}
        found[f"{name}.width"] = torch.tensor(groups.shape[-1])
    save_file(found, folder / STORED, metadata={"bits": str(bits)})


def stored_weights(folder: Path, *, bits: int) -> dict[str, Tensor]:
    """Return layer -> weight (d_out, d_in), float32, to the bit what ``write_weights`` was given."""
    found, weights = load_file(folder / STORED), dict[str, Tensor]()
    for name in (key.removesuffix(".codes") for key in found if key.endswith(".codes")):
        least, scales = found[f"{name}.least"], found[f"{name}.scales"]
        shape = (*least.shape, int(found[f"{name}.width"]))
        codes = unpacked(found[f"{name}.codes"], bits=bits, shape=shape) + least[..., None]
        weights[name] = (codes.to(torch.float32) * scales[..., None]).flatten(1)
    return weights


def packed(numbers: Tensor, *, bits: int) -> Tensor:
    """Return uint8 (ceil(n * bits / 8),) of n numbers from 0 to 2^bits - 1, the low bit of each first.

    Raises:
        ValueError: a number needs more bits.
    """
    flat = numbers.flatten().numpy().astype(np.int64)
    if flat.size and not 0 <= flat.min() <= flat.max() < 2**bits:
        raise ValueError(f"numbers from {flat.min()} to {flat.max()}: expected 0 to {2**bits - 1}, bits = {bits}")
    rows = (flat[:, None] >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(rows.astype(np.uint8), bitorder="little"))


def unpacked(stored: Tensor, *, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return int64 of this shape, what ``packed`` was given.

    Raises:
        ValueError: another number of bytes than such a shape has.
    """
    number = int(np.prod(shape))
    if stored.numel() != (number * bits + 7) // 8:
        raise ValueError(
            f"{stored.numel()} bytes: expected {(number * bits + 7) // 8} of {number} numbers of {bits} bits"
        )
    found = np.unpackbits(stored.numpy(), count=number * bits, bitorder="little").reshape(number, bits)
    return torch.from_numpy((found.astype(np.int64) << np.arange(bits)).sum(axis=1)).reshape(shape)
