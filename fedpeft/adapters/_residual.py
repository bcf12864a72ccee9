"""Residuals on frozen weights: W + residual + scale * B A, set anew from W each time, and saved as further LoRA rank.

HF peft's files hold factors only. A residual of rank q, factored exactly by its SVD, is q more rows of A and q more
columns of B; the scale is folded into B, so that the file's own scale is one.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters.base import Attached, Shifted, pairs
from fedpeft.errors import TensorMismatchError
from fedpeft.tensors import Spec, require_manifest

__all__ = ["factored", "require", "shift", "widened"]


@torch.no_grad()
def shift(attached: Attached, residuals: Mapping[str, Tensor], layers: Mapping[str, Any]) -> None:
    """Set the weight of each peft layer, path -> layer, to W + residual (d_out, d_in).

    Raises:
        TensorMismatchError: other groups or shapes than the layers'; nothing is written.
    """
    require(residuals, layers)
    for path, layer in ((path, layer.get_base_layer()) for path, layer in layers.items()):
        weight, residual = layer.weight, residuals[path]
        kept = attached.shifts.get(path)
        base = weight.detach().clone() if kept is None else kept.base
        attached.shifts[path] = Shifted(base=base, residual=residual)
        added = _own(layer, residual).to(base.device, torch.float32)
        weight.copy_(base.to(torch.float32) + added)


def widened(attached: Attached, config: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return peft's LoRA config at scale one, and slot name -> factor (r + q, d_in) or (d_out, r + q) of each pair."""
    live = {bound.slot.name: bound.parameter.detach().cpu() for bound in attached.bound}
    found, ranks = {}, {}
    for pair in pairs(attached.slots):
        b, a = factored(attached.shifts[pair.b.group].residual)
        found[pair.a.name] = torch.cat([live[pair.a.name], a])
        found[pair.b.name] = torch.cat([pair.scale * live[pair.b.name], b], dim=1)
        ranks[re.escape(pair.b.group)] = pair.a.shape[0] + len(a)
    config.use_rslora, config.rank_pattern, config.alpha_pattern = False, ranks, dict(ranks)
    return config, found


def factored(residual: Tensor) -> tuple[Tensor, Tensor]:
    """Return (d_out, q) and (q, d_in), float32, whose product is the residual up to its own rounding; q is its rank.

    By SVD in float64; singular values that float32 cannot tell from zero, beside the largest, are left out.
    """
    u, sigma, vt = torch.linalg.svd(residual.to("cpu", torch.float64), full_matrices=False)
    rank = int((sigma > torch.finfo(torch.float32).eps * sigma.max()).sum())
    root = sigma[:rank].sqrt()
    return (u[:, :rank] * root).to(torch.float32), (root[:, None] * vt[:rank]).to(torch.float32)


def require(residuals: Mapping[str, Tensor], layers: Mapping[str, Any]) -> None:
    """Refuse residuals that are not exactly those of the peft layers.

    Raises:
        TensorMismatchError: other groups, shapes or dtypes.
    """
    bases: dict[str, nn.Module] = {path: layer.get_base_layer() for path, layer in layers.items()}
    if other := sorted(set(residuals) ^ set(bases)):
        raise TensorMismatchError(f"residuals: {other[0]!r} is an adapted layer or has a residual, expected both")
    for path, layer in bases.items():
        want = Spec(name=path, shape=tuple(_own(layer, layer.get_parameter("weight")).shape), dtype="float32")
        given = residuals[path]
        got = Spec(name=path, shape=tuple(given.shape), dtype=str(given.dtype).removeprefix("torch."))
        require_manifest([got], [want], where="residuals")


def _own(layer: nn.Module, matrix: Tensor) -> Tensor:
    """Turn (d_out, d_in) into the layer's own orientation, or back."""
    return matrix.T if isinstance(layer, Conv1D) else matrix
