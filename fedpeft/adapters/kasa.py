"""Adaptation beside a weight without its smallest singular triplets: W_t + (alpha / r) B diag(d) A.

Wang, Jiang, Park, Kim, Tang: KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models (2024), arXiv
2412.06071. W_t is W less its r smallest singular triplets; B (d_out, r) starts at zero, A (r, d_in) Kaiming-uniform,
d (r,) standard normal, and all three train. The adapted model therefore does not start as its base: it lacks what was
cut off. Regularisers of the parameters alone, after clipping: beta sum d^2 + gamma (||B^T B - I||_F + ||A A^T - I||_F),
the mean over layers, as the paper's code takes it; the Gram matrices are r x r, as in the paper and peft, where that
code forms the larger ones, which cannot come near I. Rank 8, alpha 16, beta 1e-4, gamma 1e-3.

NONLINEAR: the product of the means of three factors is not the mean of the products. The server cuts and draws once;
what was cut off and the start of A and d are in the plan, r (d_out + 2 d_in + 1) floats a layer; r (d_out + d_in + 1)
travel each round each way. Saved as LoRA of rank 2 r on the uncut weight: the product, and minus what was cut off.
"""

from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters._parallel import Branch, Parallel, Stage, beside, flags, single
from fedpeft.adapters._svd import require_rank, svd, weight_of
from fedpeft.adapters._targets import matching
from fedpeft.adapters.base import Algebra, Attached, Penalty
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.seeds import generator
from fedpeft.tensors import Tensors

__all__ = ["Kasa", "Options", "make"]


@final
class Options(Frozen):
    """Options of adaptation beside a truncated weight."""

    rank: int = Field(default=8, ge=1)
    """How many singular triplets are cut off, and the inner width of what is put beside."""
    alpha: float = Field(default=16.0, gt=0)
    """B diag(d) A is scaled by alpha / rank."""
    beta: float = Field(default=1e-4, ge=0)
    """Of the squared sum of d in the loss."""
    gamma: float = Field(default=1e-3, ge=0)
    """Of the distances of B and A from orthonormal in the loss."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class Kasa(Parallel):
    """Three factors beside a truncated weight, of fedpeft's own making."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the targets, what is cut off each weight, and where A and d start."""
        paths, rank, tensors = matching(model, self.options.target_modules), self.options.rank, {}
        for path in paths:
            require_rank(rank, path, layer := model.get_submodule(path))
            found = svd(weight_of(layer))
            tensors[f"{path}.cut_B"] = single((found.u * found.s)[:, -rank:])
            tensors[f"{path}.cut_A"] = single(found.vt[-rank:])
            width, draw = found.vt.shape[1], generator(seed, "kasa", path)
            tensors[f"{path}.A"] = (2 * torch.rand(rank, width, generator=draw) - 1) / width**0.5
            tensors[f"{path}.d"] = torch.randn(rank, generator=draw)
        values = {"scale": self.options.alpha / rank, **flags(model, paths)}
        return Plan(adapter="kasa", values=values, tensors=Tensors(tensors))

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Cut each weight as planned and put B diag(d) A beside it; B (d_out, r) is zero."""
        given = plan.tensors

        def stages(path: str, layer: nn.Module) -> list[Stage]:
            start = {"A": given[f"{path}.A"], "d": given[f"{path}.d"], "B": torch.zeros_like(given[f"{path}.cut_B"])}
            return [Stage(role=role, value=value, algebra=Algebra.NONLINEAR) for role, value in start.items()]

        def removed(path: str) -> tuple[Tensor, Tensor]:
            return given[f"{path}.cut_B"], given[f"{path}.cut_A"]

        return beside(model, plan.values["targets"], stages, scale=plan.values["scale"], removed=removed)

    def penalty(self, attached: Attached) -> Penalty:
        """Return both regularisers, which look at the factors alone; none where neither has a weight."""
        if not self.options.beta and not self.options.gamma:
            return Penalty()
        return Penalty(data_free=torch.stack([self._term(branch) for branch in attached.handle.values()]).mean())

    def _term(self, branch: Branch) -> Tensor:
        size = branch.live("d").square().sum()
        return self.options.beta * size + self.options.gamma * (_gap(branch.live("B").T) + _gap(branch.live("A")))


def make(options: Options) -> Kasa:
    """Return three factors beside a truncated weight."""
    return Kasa(options=options)


def _gap(rows: Tensor) -> Tensor:
    """Return ||A A^T - I||_F of A (r, d)."""
    distance: Tensor = torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device))
    return distance
