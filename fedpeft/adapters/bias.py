"""The biases of linear layers alone; nothing is added, and merging is exact.

Ben Zaken, Ravfogel, Goldberg: BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models (2021), arXiv 2106.10199: y = W x + b with b (d_out) trained. The paper trains the biases of the norms
too; here it is those of linear layers, all by default.

LINEAR: the mean of biases is the mean of effective weights. Starts as its base to the bit. d_out floats a layer.
A model without biases, such as Llama, is refused.
"""

from dataclasses import dataclass
from typing import final

from pydantic import Field
from torch import nn

from fedpeft.adapters._targets import matching, planned
from fedpeft.adapters.base import Adapter, Algebra, Attached, Bound, GradientSupport, Slot, freeze
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError

__all__ = ["Bias", "Options", "make"]


@final
class Options(Frozen):
    """Options of training biases."""

    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers; all of the body when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class Bias(Adapter):
    """Training of biases, in the model's own parameters."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the layers, those without a bias left out.

        Raises:
            UnsupportedError: a named layer is not there, or none of them has a bias.
        """
        asked = matching(model, self.options.target_modules)
        paths = [path for path in asked if getattr(model.get_submodule(path), "bias", None) is not None]
        if not paths:
            raise UnsupportedError(
                f"none of the {len(asked)} linear layers chosen in {type(model).__name__} has a bias to train; "
                "use adapter 'lora', or name others in adapter.target_modules"
            )
        return Plan(adapter="bias", values={"targets": paths})

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Freeze all but the biases."""
        layers = planned(model, plan.values["targets"])
        freeze(model)
        return Attached(model=model, bound=tuple(_bound(path, layer) for path, layer in layers.items()))

    def gradients(self) -> GradientSupport:
        """Return that hooks are right: a bias lies in an ordinary layer."""
        return GradientSupport(by="hooks")

    def merge(self, attached: Attached) -> nn.Module:
        """Return the model, whose biases are the trained ones already."""
        return freeze(attached.model)


def make(options: Options) -> Bias:
    """Return training of biases."""
    return Bias(options=options)


def _bound(path: str, layer: nn.Module) -> Bound:
    bias = layer.get_parameter("bias")
    bias.requires_grad_(True)
    slot = Slot(name=f"{path}.bias", shape=tuple(bias.shape), algebra=Algebra.LINEAR, group=path, role="bias")
    return Bound(slot, bias)
