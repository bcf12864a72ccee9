"""LoRA that starts at factors of its own on a residual of the frozen weight: W - s B0 A0 + s B A, W itself at first.

What such methods differ in is where A0 (r, d_in) and B0 (d_out, r) come from: they are computed once by the server and
travel in the plan, r (d_in + d_out) floats a layer. Factors that two clients computed apart need not even agree in
sign, and their mean would mean nothing. From there on it is LoRA: BILINEAR, any strategy of A/B pairs that does not
cut ranks off. HF peft's files hold it as LoRA of rank 2 r on the plain base.
"""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters import _lora, _peft, _residual
from fedpeft.adapters._targets import matching, transposed
from fedpeft.adapters.base import Adapter, Attached, GradientSupport
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.tensors import Tensors

__all__ = ["Factors", "Started", "StartedOptions", "split"]


class Factors(NamedTuple):
    """Where a layer's pair starts, float64."""

    b: Tensor
    """(d_out, r)"""
    a: Tensor
    """(r, d_in)"""


class StartedOptions(Frozen):
    """Options that these methods share."""

    rank: int = Field(default=8, ge=1)
    """Inner width r of the update."""
    alpha: float = Field(default=8.0, gt=0)
    """The update is scaled by alpha / r."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""


class _Host(NamedTuple):
    tuner: Any
    start: dict[str, Tensor]
    """Path -> -s B0 A0, (d_out, d_in), float32."""


@dataclass(frozen=True, kw_only=True)
class Started(Adapter):
    """A base to write against: a method says where its pairs start."""

    options: StartedOptions

    @property
    @abstractmethod
    def name(self) -> str:
        """The method's name."""

    @abstractmethod
    def factors(
        self, layers: Mapping[str, nn.Module], scale: float, statistics: Statistics | None
    ) -> Mapping[str, Factors]:
        """Return path -> B0 and A0 of each layer, whose update is scale * B A."""

    def targets(self, model: nn.Module) -> tuple[str, ...]:
        """Return the paths to adapt."""
        return matching(model, self.options.target_modules)

    def stabilised(self) -> bool:
        """Whether the scale is alpha / sqrt(r) instead of alpha / r."""
        return False

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the targets and where each pair starts; nothing is random."""
        paths, rank, alpha = self.targets(model), self.options.rank, self.options.alpha
        scale = alpha / (rank**0.5 if self.stabilised() else rank)
        found = self.factors({path: model.get_submodule(path) for path in paths}, scale, statistics)
        values: dict[str, Any] = {"rank": rank, "alpha": alpha, "dropout": 0.0, "rslora": self.stabilised()}
        values |= {"ranks": dict.fromkeys(paths, rank), "transposed": transposed(model, paths)}
        tensors = {f"{path}.{role}": half for path in paths for role, half in zip("BA", found[path], strict=True)}
        return Plan(adapter=self.name, values=values, tensors=Tensors(tensors).to(torch.float32))

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Inject, start each pair as planned, and take its product from the frozen weight."""

        @torch.no_grad()
        def fill(path: str, layer: Any) -> None:
            layer.lora_A[_peft.NAME].weight.copy_(plan.tensors[f"{path}.A"])
            layer.lora_B[_peft.NAME].weight.copy_(plan.tensors[f"{path}.B"])

        attached = _lora.host(model, plan, fill)
        layers = _peft.layers(model)
        start = {path: _product(plan, path, -layer.scaling[_peft.NAME]) for path, layer in layers.items()}
        _residual.shift(attached, start, layers)
        return replace(attached, handle=_Host(attached.handle, start))

    def gradients(self) -> GradientSupport:
        """Return that hooks are right: both factors are linear layers."""
        return GradientSupport(by="hooks")

    def shift(self, attached: Attached, residuals: Mapping[str, Tensor]) -> None:
        """Set each target's frozen weight to W - s B0 A0 + residual, group -> (d_out, d_in).

        Raises:
            TensorMismatchError: not exactly the targets, or another shape; nothing is written.
        """
        layers = _peft.layers(attached.model)
        _residual.require(residuals, layers)
        both = {path: start + residuals[path] for path, start in attached.handle.start.items()}
        _residual.shift(attached, both, layers)

    def scaled(self, attached: Attached, factor: float) -> AbstractContextManager[None]:
        """Multiply the scale of every layer inside the block; after it, each is to the bit what it was."""
        return _peft.scaled(attached.model, factor)

    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with W - s B0 A0 + s B A in each target."""
        return _peft.merge(replace(attached, handle=attached.handle.tuner))

    def save(self, attached: Attached, plan: Plan, folder: Path, *, base: str, revision: str | None) -> None:
        """Write the folder that ``PeftModel.from_pretrained`` reads: LoRA of rank 2 r and more on the plain base."""
        config, factors = _residual.widened(attached, _lora.config(plan))
        _peft.save(attached, config, folder, suffix=".weight", base=base, revision=revision, factors=factors)


def split(u: Tensor, s: Tensor, vt: Tensor, scale: float) -> Factors:
    """Return B0 and A0, balanced, with scale * B0 A0 = U diag(S) Vt; (d_out, r), (r,), (r, d_in)."""
    root = (s / scale).sqrt()
    return Factors(b=u * root, a=root[:, None] * vt)


def _product(plan: Plan, path: str, factor: float) -> Tensor:
    b, a = (plan.tensors[f"{path}.{role}"].to(torch.float64) for role in "BA")
    return (factor * (b @ a)).to(torch.float32)
