"""The first singular triplets of each frozen weight, all three factors trained and kept near orthonormal.

Cao: SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large Language Models (2024),
arXiv 2409.00055. W_res + scale * U diag(S) V with U (d_out, r), S (r,), V (r, d_in) from the SVD of W, W_res what is
left of W; scale is one unless set. The regulariser R, the mean of ||U^T U - I||_F and ||V V^T - I||_F over all factors,
looks at no data: like in the paper's code its gradient, gamma / lr0 (4e-4 / 3e-5 there) times that of R, is added after
clipping; here the quotient is one option. Rank is 8, where the paper takes 128.

NONLINEAR: the product is of three means, whose U and V are not orthonormal either. The server therefore brings the
aggregate back by ``retract``: QR of U and V^T with positive diagonals, and the SVD of the small core between, so that
both factors are orthonormal again and the effective weight is that of the aggregate, up to rounding. The server
decomposes W once, signs fixed; r (d_out + d_in + 1) floats a layer are in the plan and travel each round each way.
Saved as LoRA of rank 2 r: the new part, and minus the old.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters._parallel import Parallel, Stage, beside, flags, single
from fedpeft.adapters._svd import require_rank, svd, weight_of
from fedpeft.adapters._targets import matching
from fedpeft.adapters.base import Algebra, Attached, Penalty, Slot
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.tensors import Tensors

__all__ = ["Options", "Sorsa", "make"]


@final
class Options(Frozen):
    """Options of trained singular triplets."""

    rank: int = Field(default=8, ge=1)
    """How many singular triplets of each layer train, those of the largest values."""
    scale: float = Field(default=1.0, gt=0)
    """Of U diag(S) V; the frozen rest is W less the scaled start, so that any scale starts as the base."""
    regularisation: float = Field(default=13.3, ge=0)
    """Of R in the loss: the paper's gamma divided by its first learning rate."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class Sorsa(Parallel):
    """Trained singular triplets, of fedpeft's own making."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the targets and where their factors start; nothing is random."""
        paths, rank, tensors = matching(model, self.options.target_modules), self.options.rank, {}
        for path in paths:
            require_rank(rank, path, layer := model.get_submodule(path))
            found = svd(weight_of(layer))
            for role, value in (("U", found.u[:, :rank]), ("S", found.s[:rank]), ("V", found.vt[:rank])):
                tensors[f"{path}.{role}"] = single(value)
        values = {"scale": self.options.scale, **flags(model, paths)}
        return Plan(adapter="sorsa", values=values, tensors=Tensors(tensors))

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Take scale * U diag(S) V out of each weight and put it beside."""
        given, scale = plan.tensors, plan.values["scale"]

        def stages(path: str, layer: nn.Module) -> list[Stage]:
            return [Stage(role=role, value=given[f"{path}.{role}"], algebra=Algebra.NONLINEAR) for role in "VSU"]

        def removed(path: str) -> tuple[Tensor, Tensor]:
            return scale * given[f"{path}.U"].double() * given[f"{path}.S"], given[f"{path}.V"]

        return beside(model, plan.values["targets"], stages, scale=scale, removed=removed)

    def penalty(self, attached: Attached) -> Penalty:
        """Return R, which looks at the factors alone; none where it has no weight."""
        if not self.options.regularisation:
            return Penalty()
        live = [(branch.live("U").T, branch.live("V")) for branch in attached.handle.values()]
        gaps = [torch.linalg.matrix_norm(_gap(rows)) for both in live for rows in both]
        return Penalty(data_free=self.options.regularisation * torch.stack(gaps).mean())

    def retract(self, slots: Sequence[Slot], adapter: Tensors) -> Tensors:
        """Return the aggregate with orthonormal U and V in each layer and the same product U diag(S) V."""
        changed = {}
        for group in _groups(slots):
            changed.update(_retracted(*(adapter[f"{group}.{role}"] for role in "USV"), group=group))
        return Tensors((name, changed.get(name, value)) for name, value in adapter.items())


def make(options: Options) -> Sorsa:
    """Return trained singular triplets."""
    return Sorsa(options=options)


def _gap(rows: Tensor) -> Tensor:
    """Return V V^T - I of V (r, d)."""
    return rows @ rows.T - torch.eye(len(rows), device=rows.device)


def _groups(slots: Iterable[Slot]) -> list[str]:
    return [slot.group for slot in slots if slot.role == "S"]


def _retracted(u: Tensor, s: Tensor, v: Tensor, *, group: str) -> dict[str, Tensor]:
    """U = Q_u R_u and V^T = Q_v R_v; the core R_u diag(S) R_v^T = P diag(S') O^T gives Q_u P, S', O^T Q_v^T.

    Where nothing is to be done, P and O are the identity (up to order and signs of S), since R has a positive diagonal.
    """
    (left, upper), (right, lower) = _qr(u), _qr(v.T)
    core = svd((upper * s) @ lower.T)
    found = {"U": left @ core.u, "S": core.s, "V": core.vt @ right.T}
    return {f"{group}.{role}": single(value) for role, value in found.items()}


def _qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q (d, r) and R (r, r), float64, with no negative entry on R's diagonal."""
    q, r = torch.linalg.qr(matrix.to("cpu", torch.float64))
    sign = torch.where(r.diagonal() < 0, -1.0, 1.0).to(torch.float64)
    return q * sign, sign[:, None] * r
