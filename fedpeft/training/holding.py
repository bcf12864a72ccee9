"""Hold the first ranks of every A/B pair still while the others train."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedpeft.adapters.base import Attached
from fedpeft.strategies.ranks import rank_axes

__all__ = ["holding"]


@contextmanager
def holding(attached: Attached, num_ranks: int) -> Iterator[None]:
    """Keep rows ``[:num_ranks]`` of A's and columns ``[:num_ranks]`` of B's as they are inside the block.

    Their gradients are zero, so they enter neither the clipped norm nor an optimizer's moments. Weight decay asks no
    gradient: what it moved is put back before each forward pass and at the end.
    """
    if not num_ranks:
        yield
        return
    axes = rank_axes(attached.slots)
    factors = [(bound.parameter, axes[bound.slot.name]) for bound in attached.bound if bound.slot.name in axes]
    kept = [_first(parameter.detach(), axis, num_ranks).clone() for parameter, axis in factors]

    @torch.no_grad()
    def restore(*_: object) -> None:
        for (parameter, axis), value in zip(factors, kept, strict=True):
            _first(parameter, axis, num_ranks).copy_(value)

    with ExitStack() as stack:
        stack.callback(restore)
        stack.callback(attached.model.register_forward_pre_hook(restore).remove)
        for parameter, axis in factors:
            if parameter.requires_grad:
                stack.callback(_silence(parameter, axis, num_ranks).remove)
        yield


def _silence(parameter: nn.Parameter, axis: int, num_ranks: int) -> RemovableHandle:
    def silenced(gradient: Tensor) -> Tensor:
        rest = gradient.clone()
        _first(rest, axis, num_ranks).zero_()
        return rest

    handle: RemovableHandle = parameter.register_hook(silenced)  # type: ignore[no-untyped-call]
    return handle


def _first(tensor: Tensor, axis: int, num_ranks: int) -> Tensor:
    return tensor.narrow(axis, 0, num_ranks)
