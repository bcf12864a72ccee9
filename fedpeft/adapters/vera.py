"""One pair of random matrices shared by all layers, and two trained vectors a layer: W + diag(b) B diag(d) A.

Kopiczko, Blankevoort, Asano: VeRA: Vector-based Random Matrix Adaptation (2023), arXiv 2310.11454. A (r, widest d_in)
and B (widest d_out, r) are Kaiming-uniform, drawn from the plan's seed, frozen, and cut to each layer's sides; d (r,)
starts at ``d_initial`` and b (d_out,) at zero, so that the model starts as its base to the bit. Layers of unlike sides
share one pair as in peft; the paper adapts layers of one shape. Rank 256, d_initial 0.1.

NONLINEAR: b and d enter as a product, so their means are not the mean of the weights. r + d_out floats a layer travel
each round each way; A and B never do. Saved as LoRA's factors (diag(b) B diag(d), A), which peft holds exactly, but in
as many numbers as LoRA of rank r.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters._parallel import Parallel, Stage, beside, flags
from fedpeft.adapters._targets import features, matching, planned
from fedpeft.adapters.base import Algebra, Attached
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.seeds import derive, generator

__all__ = ["Options", "Vera", "make"]


@final
class Options(Frozen):
    """Options of vectors between shared random matrices."""

    rank: int = Field(default=256, ge=1)
    """Inner width r of the shared pair; may be above a layer's sides, since nothing of it is trained."""
    d_initial: float = Field(default=0.1, gt=0)
    """Where every entry of d starts; at zero nothing would ever move, since b starts there."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class Vera(Parallel):
    """Vectors between shared random matrices, of fedpeft's own making."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the targets, the sides of the shared pair and its seed."""
        paths = matching(model, self.options.target_modules)
        sides = [features(model.get_submodule(path)) for path in paths]
        shared = {"d_in": max(d_in for d_in, _ in sides), "d_out": max(d_out for _, d_out in sides)}
        own = self.options.model_dump(include={"rank", "d_initial"})
        return Plan(adapter="vera", values={**own, **shared, "seed": derive(seed, "vera"), **flags(model, paths)})

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Put diag(b) B diag(d) A beside each target; d (r,) is ``d_initial``, b (d_out,) zero."""
        values, layers = plan.values, planned(model, plan.values["targets"])
        device = next(iter(layers.values())).get_parameter("weight").device
        rank, start = values["rank"], values["d_initial"]
        a, b = (_drawn(values["seed"], role, *shape, device) for role, shape in _shapes(plan).items())

        def stages(path: str, layer: nn.Module) -> list[Stage]:
            d_in, d_out = features(layer)
            return [
                Stage(role="A", value=a[:, :d_in]),
                Stage(role="d", value=torch.full((rank,), start), algebra=Algebra.NONLINEAR),
                Stage(role="B", value=b[:d_out]),
                Stage(role="b", value=torch.zeros(d_out), algebra=Algebra.NONLINEAR),
            ]

        return beside(model, layers, stages)


def make(options: Options) -> Vera:
    """Return vectors between shared random matrices."""
    return Vera(options=options)


def _shapes(plan: Plan) -> dict[str, tuple[int, int]]:
    rank = plan.values["rank"]
    return {"A": (rank, plan.values["d_in"]), "B": (plan.values["d_out"], rank)}


def _drawn(seed: int, role: str, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return a Kaiming-uniform matrix; each layer's part of it is a view, so that it is held once."""
    uniform = 2 * torch.rand(rows, columns, generator=generator(seed, role)) - 1
    return (uniform * math.sqrt(6 / columns)).to(device)
