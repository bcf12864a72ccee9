"""Low-rank update of linear layers: W + scale * B A, merged at no cost.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA: Low-Rank Adaptation of Large Language Models (2021),
arXiv 2106.09685. The option ``rslora`` scales by alpha / sqrt(r): Kalajdzievski (2023), arXiv 2312.03732.

BILINEAR: what counts is the product, so the mean of factors is not the factor of the mean.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters import _lora, _peft, _residual
from fedpeft.adapters._targets import matches, matching, transposed
from fedpeft.adapters.base import Adapter, Attached, GradientSupport
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import derive, generator

__all__ = ["Lora", "Options", "make"]


@final
class Options(Frozen):
    """Options of LoRA."""

    rank: int = Field(default=8, ge=1)
    """Inner width r of the update."""
    alpha: float = Field(default=16.0, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """On the input of A, in training."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """End of a name -> rank, where it differs; the longest that matches a layer counts."""


@final
@dataclass(frozen=True, kw_only=True)
class Lora(Adapter):
    """LoRA, hosted by peft."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the targets, the rank of each and the seed of A."""
        paths = matching(model, self.options.target_modules)
        return Plan(
            adapter="lora",
            values={
                **self.options.model_dump(include={"rank", "alpha", "dropout", "rslora"}),
                "ranks": self._ranks(paths),
                "seed": derive(seed, "lora"),
                "transposed": transposed(model, paths),
            },
        )

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Inject; A (r, d_in) is Kaiming-uniform from the plan's seed and the layer's path, B (d_out, r) is zero."""

        def fill(path: str, layer: Any) -> None:
            _initialise(layer.lora_A[_peft.NAME].weight, plan.values["seed"], path)

        return _lora.host(model, plan, fill)

    def shift(self, attached: Attached, residuals: Mapping[str, Tensor]) -> None:
        """Set each target's frozen weight to W + residual, group -> (d_out, d_in).

        Raises:
            TensorMismatchError: not exactly the targets, or another shape; nothing is written.
            UnsupportedError: the frozen base is quantised.
        """
        _peft.require_float(attached.model, doing="a residual on it would be rounded away")
        _residual.shift(attached, residuals, _peft.layers(attached.model))

    def scaled(self, attached: Attached, factor: float) -> AbstractContextManager[None]:
        """Multiply the scale of every layer inside the block; after it, each is to the bit what it was."""
        return _peft.scaled(attached.model, factor)

    def beside_quantized(self) -> str:
        """Return that nothing hinders: the factors see a layer's input, and the frozen weight is only called."""
        return ""

    def gradients(self) -> GradientSupport:
        """Return that hooks are right: both factors are linear layers."""
        return GradientSupport(by="hooks")

    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with W + scale * B A in each target.

        Raises:
            UnsupportedError: the frozen base is quantised.
        """
        return _peft.merge(attached)

    def save(self, attached: Attached, plan: Plan, folder: Path, *, base: str, revision: str | None) -> None:
        """Write the folder that ``PeftModel.from_pretrained`` reads; a residual becomes further rank."""
        config = _lora.config(plan)
        config, factors = _residual.widened(attached, config) if attached.shifts else (config, {})
        _peft.save(attached, config, folder, suffix=".weight", base=base, revision=revision, factors=factors)

    def _ranks(self, paths: Iterable[str]) -> dict[str, int]:
        pattern = self.options.rank_pattern
        for suffix in pattern:
            if not any(matches(path, suffix) for path in paths):
                raise UnsupportedError(f"adapter.rank_pattern: {suffix!r} matches none of the target modules")
        fitting = {path: [suffix for suffix in pattern if matches(path, suffix)] for path in paths}
        return {path: pattern[max(found, key=len)] if found else self.options.rank for path, found in fitting.items()}


def make(options: Options) -> Lora:
    """Return LoRA."""
    return Lora(options=options)


@torch.no_grad()
def _initialise(parameter: nn.Parameter, seed: int, path: str) -> None:
    """Fill A on the CPU, whatever its device, so that equal plans give equal bits."""
    fresh = torch.empty(parameter.shape)
    parameter.copy_(nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator(seed, path)))
