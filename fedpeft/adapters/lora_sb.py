"""A small square core between two fixed bases of each frozen weight: W + scale * B R A, merged at no cost.

Ponkshe, Singhal, Gorbunov, Tumanov, Horvath, Vepakomma: Initialization using Update Approximation is a Silver Bullet
for Extremely Efficient Low-Rank Fine-Tuning (2024), arXiv 2411.19557, for the form, as Fed-SB uses it. The bases are
those of Bałazy, Banaei, Aberer, Tabor: LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters (2024),
arXiv 2405.17604: the first r singular vectors of W itself, B = U_r (d_out, r) and A = V_r^T (r, d_in), here without the
singular values. The former takes them from the gradient of examples; no example is looked at here.

The server decomposes once, in float64, each vector of U turned so that its largest entry is positive; the bases travel
in the plan, r (d_out + d_in) floats a layer, and nobody computes them again. R (r, r) starts at zero and is all that
trains. LINEAR: with the bases fixed the mean of cores gives exactly the mean of weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from peft import LoraConfig
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters import _peft
from fedpeft.adapters._svd import require_rank, svd, weight_of
from fedpeft.adapters._targets import features, matching, planned, put, transposed
from fedpeft.adapters.base import Adapter, Algebra, Attached, Bound, GradientSupport, Slot, freeze
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.seeds import isolated
from fedpeft.tensors import Tensors

__all__ = ["LoraSb", "Options", "make"]


@final
class Options(Frozen):
    """Options of cores between fixed bases."""

    rank: int = Field(default=8, ge=1)
    """Side r of the core; a layer trains r^2 numbers, so r may be larger than LoRA's."""
    scale: float = Field(default=1.0, gt=0)
    """Of B R A; the bases are orthonormal, so that the update is of the size of scale * R."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class LoraSb(Adapter):
    """Cores between bases of the frozen weights, of fedpeft's own making."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the targets and their bases; nothing is random."""
        paths, rank = matching(model, self.options.target_modules), self.options.rank
        named = {path: model.get_submodule(path) for path in paths}
        for path, layer in named.items():
            require_rank(rank, path, layer)
        bases = {f"{path}.{role}": base for path, layer in named.items() for role, base in _bases(layer, rank)}
        values = {**self.options.model_dump(include={"rank", "scale"}), "transposed": transposed(model, paths)}
        return Plan(adapter="lora_sb", values={**values, "targets": list(paths)}, tensors=Tensors(bases))

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Put a core beside each target; R (r, r) is zero, B (d_out, r) and A (r, d_in) are the plan's."""
        layers = planned(freeze(model), plan.values["targets"])
        cores = {path: _Core(layer, path, plan) for path, layer in layers.items()}
        for path, core in cores.items():
            put(model, path, core)
        return Attached(model=model, bound=tuple(_bind(cores)), handle=cores)

    def gradients(self) -> GradientSupport:
        """Return that hooks are right: the core is a linear layer."""
        return GradientSupport(by="hooks")

    @torch.no_grad()
    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with W + scale * B R A in each target."""
        for path, core in attached.handle.items():
            change = core.scale * core.up.weight @ core.core.weight @ core.down.weight
            core.base.weight += change.T if isinstance(core.base, Conv1D) else change
            put(attached.model, path, core.base)
        return attached.model

    def save(self, attached: Attached, plan: Plan, folder: Path, *, base: str, revision: str | None) -> None:
        """Write the folder that ``PeftModel.from_pretrained`` reads: LoRA of A and scale * B R, at peft's scale one."""
        factors: dict[str, Tensor] = {}
        for path, core in attached.handle.items():
            factors[f"{path}.lora_A"] = core.down.weight
            factors[f"{path}.lora_B"] = core.scale * core.up.weight @ core.core.weight
        rank, paths = plan.values["rank"], list(plan.values["targets"])
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=paths, fan_in_fan_out=plan.values["transposed"])
        _peft.save(attached, config, folder, suffix=".weight", base=base, revision=revision, factors=factors)


def make(options: Options) -> LoraSb:
    """Return cores between fixed bases."""
    return LoraSb(options=options)


@final
class _Core(nn.Module):
    """base(x) + scale * B R A x."""

    def __init__(self, base: Any, path: str, plan: Plan) -> None:
        super().__init__()
        rank, (d_in, d_out) = plan.values["rank"], features(base)
        self.base, self.scale = base, plan.values["scale"]
        self.down, self.core, self.up = (_fixed(*sides) for sides in ((d_in, rank), (rank, rank), (rank, d_out)))
        self.down.weight.data.copy_(plan.tensors[f"{path}.A"])
        self.up.weight.data.copy_(plan.tensors[f"{path}.B"])
        self.core.requires_grad_(True)
        self.to(base.weight.device).train(base.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        outputs: Tensor = self.base(inputs) + self.scale * self.up(self.core(self.down(inputs)))
        return outputs


def _fixed(d_in: int, d_out: int) -> nn.Linear:
    """Return a layer of zeros that does not train."""
    with isolated(0, "lora_sb"):
        layer = nn.Linear(d_in, d_out, bias=False).requires_grad_(False)
    nn.init.zeros_(layer.weight)
    return layer


def _bind(cores: dict[str, _Core]) -> Iterable[Bound]:
    for path, core in cores.items():
        for role, layer in (("A", core.down), ("B", core.up), ("core", core.core)):
            weight, algebra = layer.get_parameter("weight"), Algebra.LINEAR if role == "core" else Algebra.FROZEN
            name, shape = f"{path}.{role}", tuple(weight.shape)
            yield Bound(Slot(name=name, shape=shape, algebra=algebra, group=path, role=role), weight)


def _bases(layer: nn.Module, rank: int) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    """Return B = U_r (d_out, r) and A = V_r^T (r, d_in) of the weight, float32."""
    found = svd(weight_of(layer))
    return ("B", found.u[:, :rank].to(torch.float32)), ("A", found.vt[:rank].to(torch.float32))
