"""Frozen weights in one file that every process of a run maps: one copy in memory, whatever the number of processes.

The mapping is private and copied on write: whoever changes a weight (a residual, say) pays for its own pages and
nobody else sees it. Tensors begin at multiples of 64 bytes, as torch allocates them, since kernels may choose their
way, and so their rounding, by that. Safetensors files have no such promise.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpeft.errors import RunError
from fedpeft.tensors import raw

__all__ = ["map_weights", "write_weights"]

_ALIGNED = 64


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters that do not train, and the buffers, of a model on the CPU."""
    with path.open("wb") as file:
        for tensor, offset in _places(model):
            file.write(bytes(offset - file.tell()))
            file.write(raw(tensor))
        file.write(bytes(-file.tell() % _ALIGNED))


@torch.no_grad()
def map_weights(model: nn.Module, path: Path) -> None:
    """Let an equal model's frozen tensors lie in the file; those it had are given back.

    Raises:
        RunError: the file is of another model.
    """
    places = list(_places(model))
    size = _aligned(max((offset + tensor.nbytes for tensor, offset in places), default=0))
    if path.stat().st_size != size:
        raise RunError(f"{path}: {path.stat().st_size} bytes of weights, expected {size}: the model is another one")
    if not size:
        return
    storage = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).untyped_storage()
    for tensor, offset in places:
        flat = torch.empty(0, dtype=tensor.dtype)
        tensor.data = flat.set_(storage, offset // tensor.itemsize, tensor.shape, tensor.stride())


def _places(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Yield each frozen tensor once, with its offset in the file; those laid out in other ways stay where they are."""
    frozen = [each for each in model.parameters() if not each.requires_grad]
    offset, seen = 0, {each.data_ptr() for each in model.parameters() if each.requires_grad}
    for tensor in (*frozen, *model.buffers()):
        if tensor.numel() and tensor.is_contiguous() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor, offset
            offset = _aligned(offset + tensor.nbytes)


def _aligned(size: int) -> int:
    return size + -size % _ALIGNED
