"""A branch of linear maps and diagonals beside a frozen linear layer, in activation space: y = base(x) + s * f(x).

f is a chain of named stages, each an ordinary leaf module that is called positionally, as gradients of single examples
by hooks need: ``nn.Linear`` without bias, or a diagonal. Some stages train, the others are shared and frozen. Where the
method takes a low-rank part out of the frozen weight, its factors are kept, so that merging and saving stay exact.
"""

import re
from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters import _peft
from fedpeft.adapters._targets import planned, put, transposed
from fedpeft.adapters.base import Adapter, Algebra, Attached, Bound, GradientSupport, Slot, freeze
from fedpeft.adapters.plan import Plan

__all__ = ["Branch", "Diag", "Factors", "Parallel", "Stage", "beside", "flags", "single"]

Factors = tuple[Tensor, Tensor]
"""(d_out, q) and (q, d_in)."""


@final
@dataclass(frozen=True, kw_only=True)
class Stage:
    """One link of the chain: a matrix (out, in) is a linear map, a vector (width,) a diagonal."""

    role: str
    value: Tensor
    algebra: Algebra = Algebra.FROZEN


@final
class Diag(nn.Module):
    """x * d, for d of the width of x."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., width) to (..., width)."""
        return inputs * self.weight


@final
class Branch(nn.Module):
    """base(x) + scale * last(... first(x)); each stage is a child module named by its role."""

    def __init__(self, base: Any, stages: Sequence[Stage], *, scale: float, removed: Factors | None) -> None:
        super().__init__()
        self.base, self.scale, self.removed = base, scale, removed
        self.roles = tuple(stage.role for stage in stages)
        for stage in stages:
            self.add_module(stage.role, _leaf(stage, base.weight.device))
        if removed is not None:
            self._add(-_product(removed))
        self.train(base.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        inner = inputs
        for role in self.roles:
            inner = self.get_submodule(role)(inner)
        outputs: Tensor = self.base(inputs) + self.scale * inner
        return outputs

    def live(self, role: str) -> Tensor:
        """Return the parameter of a stage."""
        return self.get_submodule(role).get_parameter("weight")

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return what the chain adds to the frozen weight, (d_out, d_in), float64 on the CPU."""
        return _product(self._own())

    @torch.no_grad()
    def factors(self) -> Factors:
        """Return factors, float64, of the whole change against the weight as it was loaded, what was taken out too."""
        b, a = self._own()
        if self.removed is None:
            return b, a
        return torch.cat([b, -_exact(self.removed[0])], dim=1), torch.cat([a, _exact(self.removed[1])])

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """Return the plain layer with the chain in its weight; the branch is used up."""
        self._add(self.delta())
        plain: nn.Module = self.base
        return plain

    def _own(self) -> Factors:
        """Return the product of all stages but the first, times scale, and the first, which is a matrix."""
        first, *rest = (_exact(self.live(role)) for role in self.roles)
        b = self.scale * torch.eye(len(first), dtype=torch.float64)
        for value in rest:
            b = value[:, None] * b if value.ndim == 1 else value @ b
        return b, first

    @torch.no_grad()
    def _add(self, change: Tensor) -> None:
        """Add (d_out, d_in) to the frozen weight, in float64, whichever way the layer keeps it."""
        weight, own = self.base.weight, change.T if isinstance(self.base, Conv1D) else change
        weight.copy_(_exact(weight) + own)


class Parallel(Adapter, ABC):
    """What the methods of this form share once they are attached."""

    def gradients(self) -> GradientSupport:
        """Return that hooks are right: every stage is a leaf module, called positionally."""
        return GradientSupport(by="hooks")

    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with the chain's product in each target."""
        for path, branch in attached.handle.items():
            put(attached.model, path, branch.folded())
        return attached.model

    def save(self, attached: Attached, plan: Plan, folder: Path, *, base: str, revision: str | None) -> None:
        """Write the folder that ``PeftModel.from_pretrained`` reads: LoRA's factors at peft's scale one."""
        factors, ranks, paths = {}, {}, list(attached.handle)
        for path, branch in attached.handle.items():
            b, a = (value.to(torch.float32) for value in branch.factors())
            factors[f"{path}.lora_A"], factors[f"{path}.lora_B"], ranks[re.escape(path)] = a, b, len(a)
        config = LoraConfig(r=1, lora_alpha=1, target_modules=paths, rank_pattern=ranks, alpha_pattern=dict(ranks))
        config.fan_in_fan_out = plan.values["transposed"]
        _peft.save(attached, config, folder, suffix=".weight", base=base, revision=revision, factors=factors)


def beside(
    model: nn.Module,
    paths: Iterable[str],
    stages: Callable[[str, nn.Module], Sequence[Stage]],
    *,
    scale: float = 1.0,
    removed: Callable[[str], Factors] | None = None,
) -> Attached:
    """Freeze the model, take ``removed(path)`` out of each layer's weight, put ``stages(path, layer)`` beside it.

    Raises:
        UnsupportedError: the model lacks a planned module; nothing has been changed.
    """
    layers = planned(model, paths)
    freeze(model)
    branches, bound = {}, []
    for path, layer in layers.items():
        chain = stages(path, layer)
        branch = Branch(layer, chain, scale=scale, removed=None if removed is None else removed(path))
        put(model, path, branch)
        branches[path] = branch
        bound += [_bind(path, stage, branch) for stage in chain]
    return Attached(model=model, bound=tuple(bound), handle=branches)


def single(value: Tensor) -> Tensor:
    """Return a plan's tensor: float32 and contiguous, as it is after the wire, since strides change rounding."""
    return value.to(torch.float32).contiguous()


def flags(model: nn.Module, paths: Sequence[str]) -> dict[str, Any]:
    """Return the plan's values that all methods of this form need."""
    return {"targets": list(paths), "transposed": transposed(model, paths)}


def _leaf(stage: Stage, device: torch.device) -> nn.Module:
    trains = stage.algebra is not Algebra.FROZEN
    value = stage.value.detach().to(device, torch.float32, copy=trains)  # a copy: the plan's tensors stay as they are
    parameter = nn.Parameter(value, requires_grad=trains)
    if value.ndim == 1:
        return Diag(parameter)
    layer = nn.Linear(value.shape[1], value.shape[0], bias=False, device="meta")  # meta draws no random numbers
    layer.weight = parameter
    return layer


def _bind(path: str, stage: Stage, branch: Branch) -> Bound:
    shape = tuple(stage.value.shape)
    slot = Slot(name=f"{path}.{stage.role}", shape=shape, algebra=stage.algebra, group=path, role=stage.role)
    parameter = branch.get_submodule(stage.role).get_parameter("weight")
    return Bound(slot, parameter)


def _product(factors: Factors) -> Tensor:
    return _exact(factors[0]) @ _exact(factors[1])


def _exact(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)
