"""Median of each coordinate: fewer than half of the clients may send anything.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates (2018),
arXiv 1803.01498. An even number of updates has the mean of the middle two.

It needs every update of a round at once: K adapters of memory. Clients count alike. Updates that are NaN or infinite
count as extreme; where they reach the middle of a coordinate the round is refused. On adapters with pairs the median is
taken of each factor, not of the product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpeft.adapters.base import Slot
from fedpeft.config.base import Frozen
from fedpeft.strategies.base import Stack, State
from fedpeft.strategies.stacking import Stacking, coordinatewise, require_enough
from fedpeft.strategies.weighting import moved

__all__ = ["Median", "Options", "make"]


@final
class Options(Frozen):
    """The median has no options."""


@final
@dataclass(frozen=True, kw_only=True)
class Median(Stacking):
    """The coordinate-wise median of the updates."""

    options: Options

    def apply(self, slots: Sequence[Slot], state: State, total: Stack) -> State:
        """Move each coordinate by the median of its deltas.

        Raises:
            RunError: half of the updates or more are not finite in some coordinate.
        """
        require_enough(total.updates, at_least=1, why="a median")
        withstands = (len(total.updates) - 1) // 2
        step = coordinatewise(total.updates, _middle, withstands=withstands, name="median")
        return State(adapter=moved(state.adapter, step), memory=state.memory)


def make(options: Options) -> Median:
    """Return the coordinate-wise median."""
    return Median(options=options)


def _middle(ascending: Tensor) -> Tensor:
    lower, upper = ascending[(len(ascending) - 1) // 2], ascending[len(ascending) // 2]
    return (lower.to(torch.float64) + upper.to(torch.float64)) / 2
