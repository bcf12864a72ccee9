"""Modules put into a model beside its own: the ground on which methods that peft lacks are written.

A method makes one small module a target; everything the module trains becomes a slot. Its parameters sit in ordinary
leaf modules that are called positionally, which is what per-example gradients need.
"""

from collections.abc import Callable, Iterable
from typing import final

from torch import Tensor, nn

from fedpeft.adapters._targets import planned, put
from fedpeft.adapters.base import Algebra, Bound, Slot, freeze

__all__ = ["Before", "Beside", "Series", "insert"]


@final
class Series(nn.Module):
    """A layer followed by an added module with a residual: y = base(x); y + added(y)."""

    def __init__(self, base: nn.Module, added: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.added = added

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        outputs: Tensor = self.base(inputs)
        adapted: Tensor = outputs + self.added(outputs)
        return adapted


@final
class Before(nn.Module):
    """An added module with a residual on a layer's input: base(x + added(x))."""

    def __init__(self, base: nn.Module, added: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.added = added

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        adapted: Tensor = self.base(inputs + self.added(inputs))
        return adapted


@final
class Beside(nn.Module):
    """A layer and an added module on the same input: base(x) + added(x)."""

    def __init__(self, base: nn.Module, added: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.added = added

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        adapted: Tensor = self.base(inputs) + self.added(inputs)
        return adapted


def insert(
    model: nn.Module,
    paths: Iterable[str],
    make: Callable[[str, nn.Module], nn.Module],
    *,
    algebra: Algebra,
    wrap: type[Series] | type[Before] | type[Beside] = Series,
) -> tuple[Bound, ...]:
    """Freeze the model, put ``make(path, layer)`` by each layer as wrap says, and bind all it trains, in module order.

    Raises:
        UnsupportedError: the model lacks a planned module; nothing has been changed.
    """
    layers = planned(model, paths)
    freeze(model)
    bound = tuple(
        bind
        for path, layer in layers.items()
        for bind in _bind(path, _place(model, path, wrap(layer, make(path, layer))), algebra)
    )
    model.train(model.training)
    return bound


def _place(model: nn.Module, path: str, both: Series | Before | Beside) -> nn.Module:
    put(model, path, both.to(next(both.base.parameters()).device))
    return both.added


def _bind(path: str, added: nn.Module, algebra: Algebra) -> Iterable[Bound]:
    for name, parameter in added.named_parameters():
        slot = Slot(name=f"{path}.{name}", shape=tuple(parameter.shape), algebra=algebra, group=path, role=name)
        yield Bound(slot, parameter)
