"""The largest singular values of each frozen weight, between its own singular vectors; merged at no cost.

Sun, Wei, Wu, Shi, He, Ma, Xie, Yang: SVFit: Parameter-Efficient Fine-Tuning of Large Pre-Trained Models Using Singular
Values (2024), arXiv 2409.05926. W = U_r diag(s) V_r^T + W_e by the SVD of W itself; U_r (d_out, r), V_r^T (r, d_in) and
the rest W_e are frozen, sigma (r,) starts at s and is all that trains, of either sign: W_e + U_r diag(sigma) V_r^T.

r is 8, or what each layer needs to keep a share ``energy`` of the sum of squared singular values (the paper keeps 99%
of the information, without saying of what). The server decomposes once in float64, signs fixed; the factors travel in
the plan, r (d_out + d_in + 1) floats a layer; in rounds r floats a layer travel each way. LINEAR: with the bases fixed
the mean of sigmas gives exactly the mean of weights. Saved as LoRA of rank 2 r: the new part, and minus the old.
"""

from dataclasses import dataclass
from typing import Self, final

from pydantic import Field, model_validator
from torch import Tensor, nn

from fedpeft.adapters._parallel import Parallel, Stage, beside, flags, single
from fedpeft.adapters._svd import Svd, require_rank, svd, weight_of
from fedpeft.adapters._targets import matching
from fedpeft.adapters.base import Algebra, Attached
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.tensors import Tensors

__all__ = ["Options", "Svfit", "make"]


@final
class Options(Frozen):
    """Options of trained singular values."""

    rank: int = Field(default=8, ge=1)
    """How many singular values of each layer train, the largest first."""
    energy: float | None = Field(default=None, gt=0, le=1)
    """Instead of a rank: the least share of each weight's squared singular values that trains."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.energy is not None and "rank" in self.model_fields_set:
            raise ValueError("give rank or energy, not both")
        return self


@final
@dataclass(frozen=True, kw_only=True)
class Svfit(Parallel):
    """Trained singular values, of fedpeft's own making."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the targets, their ranks and their bases; nothing is random."""
        paths, tensors = matching(model, self.options.target_modules), {}
        for path in paths:
            found, rank = self._decomposed(path, model.get_submodule(path))
            tensors[f"{path}.U"], tensors[f"{path}.S"] = found.u[:, :rank], found.s[:rank]
            tensors[f"{path}.V"] = found.vt[:rank]
        return Plan(
            adapter="svfit",
            values=flags(model, paths),
            tensors=Tensors((name, single(value)) for name, value in tensors.items()),
        )

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Take the part that trains out of each weight and put it beside; sigma (r,) starts at the singular values."""
        given = plan.tensors

        def stages(path: str, layer: nn.Module) -> list[Stage]:
            sigma = Stage(role="sigma", value=given[f"{path}.S"], algebra=Algebra.LINEAR)
            return [Stage(role="V", value=given[f"{path}.V"]), sigma, Stage(role="U", value=given[f"{path}.U"])]

        def removed(path: str) -> tuple[Tensor, Tensor]:
            return given[f"{path}.U"].double() * given[f"{path}.S"], given[f"{path}.V"]

        return beside(model, plan.values["targets"], stages, removed=removed)

    def _decomposed(self, path: str, layer: nn.Module) -> tuple[Svd, int]:
        if self.options.energy is None:
            require_rank(self.options.rank, path, layer)
            return svd(weight_of(layer)), self.options.rank
        found = svd(weight_of(layer))
        kept = found.s.square().cumsum(dim=0)
        short = int((kept < self.options.energy * kept[-1]).sum())
        return found, min(short + 1, len(kept))


def make(options: Options) -> Svfit:
    """Return trained singular values."""
    return Svfit(options=options)
