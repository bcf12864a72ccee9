"""LoRA on the direction of each neuron's weight, and its length apart; merged at no cost.

Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen: DoRA: Weight-Decomposed Low-Rank Adaptation (2024), arXiv 2402.09353. W'
= m * V / ||V||, V = W + s B A, norms over the inputs of each output; m (d_out, 1) starts at the norms of W, A (r,
d_in) Kaiming-uniform from the plan's seed, B (d_out, r) at zero. The norm counts as a constant in the gradient, as
section 4.3 of the paper has it.

NONLINEAR: a change of A and B turns the weight and does not add to it, so strategies of A/B pairs would aim at
another weight; the slots are averaged plainly. Own modules, since peft's cannot be differentiated example by example
with hooks; files are peft's.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from peft import LoraConfig
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters import _peft, _reparam
from fedpeft.adapters._svd import weight_of
from fedpeft.adapters._targets import matching, transposed
from fedpeft.adapters.base import Adapter, Algebra, Attached, GradientSupport
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import derive, generator

__all__ = ["Dora", "Options", "make"]


@final
class Options(Frozen):
    """Options of DoRA."""

    rank: int = Field(default=8, ge=1)
    """Inner width r of the change of direction."""
    alpha: float = Field(default=16.0, gt=0)
    """It is scaled by alpha / r."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class Dora(Adapter):
    """DoRA."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the targets, rank, scale and the seed of A.

        Raises:
            UnsupportedError: a neuron's weight is zero, which has no direction.
        """
        paths = matching(model, self.options.target_modules)
        for path in paths:
            _require_directions(path, weight_of(model.get_submodule(path)))
        values = {**self.options.model_dump(include={"rank", "alpha"}), "transposed": transposed(model, paths)}
        return Plan(adapter="dora", values={**values, "targets": list(paths), "seed": derive(seed, "dora")})

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Decompose each target's weight."""
        values = plan.values
        scale = values["alpha"] / values["rank"]

        def made(path: str, layer: nn.Module) -> nn.Module:
            return _Decomposed(weight_of(layer), values["rank"], scale, generator(values["seed"], path))

        return _reparam.reparametrise(model, plan, made, algebra=Algebra.NONLINEAR)

    def gradients(self) -> GradientSupport:
        """Return that hooks see no batch."""
        return _reparam.BY_VMAP

    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with m * V / ||V|| in each target."""
        return _reparam.merge(attached)

    def save(self, attached: Attached, plan: Plan, folder: Path, *, base: str, revision: str | None) -> None:
        """Write the folder that ``PeftModel.from_pretrained`` reads."""
        values = plan.values
        config = LoraConfig(
            r=values["rank"],
            lora_alpha=values["alpha"],
            use_dora=True,
            target_modules=list(values["targets"]),
            fan_in_fan_out=values["transposed"],
        )
        live = {bound.slot.name: bound.parameter for bound in attached.bound if bound.slot.role != "head"}
        factors = {name: value.squeeze(1) if name.endswith("vector") else value for name, value in live.items()}
        _peft.save(attached, config, folder, suffix=".weight", base=base, revision=revision, factors=factors)


def make(options: Options) -> Dora:
    """Return DoRA."""
    return Dora(options=options)


def _require_directions(path: str, weight: Tensor) -> None:
    zero = (weight == 0).all(dim=1).nonzero().flatten().tolist()
    if zero:
        raise UnsupportedError(
            f"row {zero[0]} of {path!r} is zero: expected a direction in every row; leave the layer out of "
            "adapter.target_modules"
        )


@final
class _Decomposed(nn.Module):
    def __init__(self, weight: Tensor, rank: int, scale: float, drawn: torch.Generator) -> None:
        super().__init__()
        d_out, d_in = weight.shape
        self.scale = scale
        self.lora_magnitude_vector = nn.Parameter(weight.norm(dim=1, keepdim=True).to(torch.float32))
        self.lora_A = nn.Parameter(torch.empty(rank, d_in))
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=drawn)

    def forward(self, weight: Tensor) -> Tensor:
        """Map (d_out, d_in) to (d_out, d_in)."""
        turned = weight + self.scale * self.lora_B @ self.lora_A
        adapted: Tensor = self.lora_magnitude_vector / turned.norm(dim=1, keepdim=True).detach() * turned
        return adapted
