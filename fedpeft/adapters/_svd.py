"""The singular value decomposition of a frozen weight, as only the server computes it.

Singular vectors are unique up to sign at best, and libraries differ in it: they travel in the plan, and nobody computes
them again. Each pair is turned so that the entry of U that is largest in size is positive.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters._targets import features
from fedpeft.errors import UnsupportedError

__all__ = ["Svd", "require_rank", "svd", "weight_of"]


class Svd(NamedTuple):
    """W = U diag(S) Vt with k = min(d_out, d_in), all float64 on the CPU."""

    u: Tensor
    """(d_out, k)"""
    s: Tensor
    """(k,), falling"""
    vt: Tensor
    """(k, d_in)"""


def weight_of(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight (d_out, d_in), float64 on the CPU, whichever way the layer keeps it."""
    weight = layer.get_parameter("weight").detach().to("cpu", torch.float64)
    return weight.T if isinstance(layer, Conv1D) else weight


def svd(matrix: Tensor) -> Svd:
    """Decompose a matrix (d_out, d_in) in float64, signs fixed."""
    u, s, vt = torch.linalg.svd(matrix.to("cpu", torch.float64), full_matrices=False)
    sign = u.gather(0, u.abs().argmax(dim=0, keepdim=True)).sign()
    return Svd(u * sign, s, vt * sign.T)


def require_rank(rank: int, path: str, layer: nn.Module) -> None:
    """Refuse a rank that the layer's weight cannot have.

    Raises:
        UnsupportedError: names the layer and the bound.
    """
    if rank > (least := min(features(layer))):
        raise UnsupportedError(f"adapter.rank = {rank}: expected <= {least}, the lesser side of {path!r}")
