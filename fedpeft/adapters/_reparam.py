"""Weights that are a function of the frozen weight and of what trains: W' = f(W; theta), by torch's parametrizations.

A method writes one small module whose forward maps the frozen weight (d_out, d_in) to the adapted one; GPT-2's Conv1D,
which keeps its weight turned, is turned for it. Merging leaves f(W; theta) as the weight, exactly what was computed.

Such a module never sees a batch, so hooks cannot tell examples apart: gradients of single examples come by vmap, which
forms a matrix of the layer's size for each.
"""

from collections.abc import Callable, Iterable
from typing import final

from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters._targets import planned
from fedpeft.adapters.base import Algebra, Attached, Bound, GradientSupport, Slot, freeze
from fedpeft.adapters.plan import Plan

__all__ = ["BY_VMAP", "merge", "reparametrise"]

BY_VMAP = GradientSupport(by="vmap", reason="a weight that is computed never sees a batch, so hooks see no examples")


def reparametrise(
    model: nn.Module, plan: Plan, make: Callable[[str, nn.Module], nn.Module], *, algebra: Algebra
) -> Attached:
    """Freeze the model, put ``make(path, layer)`` on the weight of each of the plan's targets, and bind what trains.

    Raises:
        UnsupportedError: the model lacks a planned module; nothing has been changed.
    """
    layers = planned(model, plan.values["targets"])
    freeze(model)
    made = {path: make(path, layer).to(layer.get_parameter("weight").device) for path, layer in layers.items()}
    for path, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", _Turned(made[path], turned=isinstance(layer, Conv1D)))
    model.train(model.training)
    return Attached(model=model, bound=tuple(bind for path in made for bind in _bind(path, made[path], algebra)))


def merge(attached: Attached) -> nn.Module:
    """Make each computed weight the layer's own, and return the model of plain layers."""
    for module in list(attached.model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return attached.model


@final
class _Turned(nn.Module):
    """Hands a method the weight (d_out, d_in), however the layer keeps it."""

    def __init__(self, function: nn.Module, *, turned: bool) -> None:
        super().__init__()
        self.function = function
        self.turned = turned

    def forward(self, weight: Tensor) -> Tensor:
        """Map the layer's weight to the adapted one, both as the layer keeps them."""
        adapted: Tensor = self.function(weight.T if self.turned else weight)
        return adapted.T if self.turned else adapted


def _bind(path: str, function: nn.Module, algebra: Algebra) -> Iterable[Bound]:
    for name, parameter in function.named_parameters():
        slot = Slot(name=f"{path}.{name}", shape=tuple(parameter.shape), algebra=algebra, group=path, role=name)
        yield Bound(slot, parameter)
