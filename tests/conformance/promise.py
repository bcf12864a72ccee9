"""What an adapter promises with its default options: the suite holds it to this."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fedpeft.adapters._targets import features, linear_layers, place

__all__ = ["Layers", "Promise", "layers_of"]

Layers = list[tuple[str, int, int]]
"""(place in its block, d_in, d_out) of each linear layer of the body, in module order."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One adapter's."""

    count: Callable[[Layers], int]
    """Numbers that train, the head's left out."""
    start: float = 0.0
    """How far the adapted model's first logits may be from the base model's, absolutely; None at all by default."""
    saved: float = 1e-6
    """How far the saved folder's logits may be, in peft, from the adapted model's."""
    shifts: bool = False
    """Whether its frozen weights take a residual; the others refuse."""
    refuses: tuple[str, ...] = ()
    """Models of the sweep that have nothing for it to train: their plan is refused."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Where the tiny models are too small for the defaults."""


def layers_of(model: nn.Module) -> Layers:
    """Return the linear layers of a model's body."""
    return [(place(path), *features(layer)) for path, layer in linear_layers(model).items()]
