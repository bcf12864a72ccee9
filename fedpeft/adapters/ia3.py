"""One learned factor for each key, value and inner feed-forward activation; merged at no cost.

Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
In-Context Learning (2022), arXiv 2205.05638.

LINEAR on both sides. Where the output of a layer is rescaled, its weight is diag(l) W and its bias l * b; where the
input of the feed-forward output layer is rescaled, its weight is W diag(l) and its bias b. W and b are frozen and equal
everywhere, so each adapted weight is linear (b constant: affine) in l, and the mean of the l gives exactly the mean of
the weights.

peft's table for BERT also rescales the input of the attention's output layer and its tables for Gemma and Qwen rescale
queries instead of keys; the defaults here follow the paper on every architecture. A fused projection (GPT-2) is
rescaled whole, queries included.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

from peft import IA3Config, IA3Model
from pydantic import Field, model_validator
from torch import nn

from fedpeft.adapters import _peft
from fedpeft.adapters._layouts import layout
from fedpeft.adapters._targets import at_places, matching, transposed
from fedpeft.adapters.base import Adapter, Algebra, Attached, Bound, GradientSupport, Slot
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError

__all__ = ["Ia3", "Options", "make"]


@final
class Options(Frozen):
    """Options of (IA)3."""

    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the layers whose output is rescaled; the key and value projections when unset."""
    feedforward_modules: tuple[str, ...] | None = None
    """Ends of the names of the layers whose input is rescaled; the feed-forward output layers when unset."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.target_modules is None) != (self.feedforward_modules is None):
            raise ValueError("give target_modules and feedforward_modules, or neither")
        return self


@final
@dataclass(frozen=True, kw_only=True)
class Ia3(Adapter):
    """(IA)3, hosted by peft."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix which layers are rescaled and on which side; nothing is random, every factor starts at one."""
        outputs, inputs = self._sides(model)
        if both := sorted(set(outputs) & set(inputs)):
            raise UnsupportedError(f"{both[0]!r} is in target_modules and in feedforward_modules: name it in one")
        flags = {"transposed": transposed(model, (*outputs, *inputs))}
        return Plan(adapter="ia3", values={"outputs": list(outputs), "inputs": list(inputs), **flags})

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Inject; factors are (d_out, 1) on outputs and (1, d_in) on inputs, all one."""
        inputs = plan.values["inputs"]
        tuner = _peft.inject(IA3Model, model, _config(plan), [*plan.values["outputs"], *inputs])
        bound = tuple(_bind(path, layer, inputs) for path, layer in _peft.layers(model).items())
        return Attached(model=model, bound=bound, handle=tuner)

    def gradients(self) -> GradientSupport:
        """Return that hooks miss the factors: they lie in a dictionary that is never called."""
        return GradientSupport(by="vmap", reason="hooks see no call of the dictionary that peft keeps factors in")

    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with rows or columns rescaled in each target."""
        return _peft.merge(attached)

    def save(self, attached: Attached, plan: Plan, folder: Path, *, base: str, revision: str | None) -> None:
        """Write the folder that ``PeftModel.from_pretrained`` reads."""
        config = _config(plan)
        config.feedforward_modules = sorted(config.feedforward_modules)
        _peft.save(attached, config, folder, suffix="", base=base, revision=revision)

    def _sides(self, model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
        given = self.options
        if given.target_modules is not None:
            return matching(model, given.target_modules), matching(model, given.feedforward_modules or ())
        found = layout(model)
        return at_places(model, found.keys_values), at_places(model, [found.feed_forward_output])


def make(options: Options) -> Ia3:
    """Return (IA)3."""
    return Ia3(options=options)


def _config(plan: Plan) -> Any:
    outputs, inputs = plan.values["outputs"], plan.values["inputs"]
    return IA3Config(
        target_modules=[*outputs, *inputs], feedforward_modules=inputs, fan_in_fan_out=plan.values["transposed"]
    )


def _bind(path: str, layer: Any, inputs: Collection[str]) -> Bound:
    if layer.is_feedforward != (path in inputs):
        raise UnsupportedError(f"peft takes {path!r} for the wrong side: it ends in a feed-forward module's path")
    parameter = layer.ia3_l[_peft.NAME]
    role = "input_factor" if path in inputs else "output_factor"
    shape = tuple(parameter.shape)
    slot = Slot(name=f"{path}.ia3_l", shape=shape, algebra=Algebra.LINEAR, group=path, role=role)
    return Bound(slot, parameter)
