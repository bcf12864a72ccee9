"""The update that lies closest to its neighbours, or the mean of the closest few.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent (2017),
arXiv 1703.02757. Of n updates, f Byzantine, the score of each is the sum of its squared distances to the n - f - 2
nearest others, over all slots together. Krum takes the lowest score, multi-krum the mean of the num_selected lowest; of
equal scores the smaller client comes first. It takes n >= 2 f + 3.

It needs every update of a round at once: K adapters of memory, and K (K - 1) / 2 distances. Clients count alike. An
update that is NaN or infinite is infinitely far from all others, and a round in which one would be selected is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field

from fedpeft.adapters.base import Slot
from fedpeft.config.base import Frozen
from fedpeft.errors import RunError
from fedpeft.strategies.base import ClientUpdate, Stack, State
from fedpeft.strategies.stacking import Stacking, coordinatewise, num_damaged, require_enough
from fedpeft.strategies.weighting import moved
from fedpeft.tensors import Tensors

__all__ = ["Krum", "Options", "make"]


@final
class Options(Frozen):
    """Options of Krum."""

    num_byzantine: int = Field(default=1, ge=0)
    """How many clients (f) may send anything."""
    num_selected: int = Field(default=1, ge=1)
    """How many updates are averaged: 1 is Krum, more is multi-krum; at most n - f."""


@final
@dataclass(frozen=True, kw_only=True)
class Krum(Stacking):
    """Krum and multi-krum."""

    options: Options

    def least_updates(self) -> int:
        """Return 2 f + 3, or f + num_selected if that is more."""
        f = self.options.num_byzantine
        return max(2 * f + 3, f + self.options.num_selected)

    def apply(self, slots: Sequence[Slot], state: State, total: Stack) -> State:
        """Move the adapter by the mean of the selected updates.

        Raises:
            RunError: too few updates, or too many that are not finite, for num_byzantine and num_selected.
        """
        selected = self._select(sorted(total.updates, key=lambda update: update.client))
        step = coordinatewise(selected, lambda values: values.to(torch.float64).mean(dim=0), withstands=0, name="krum")
        return State(adapter=moved(state.adapter, step), memory=state.memory)

    def _select(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        f, m = self.options.num_byzantine, self.options.num_selected
        why = f"strategy.num_byzantine = {f} with num_selected = {m}"
        require_enough(updates, at_least=self.least_updates(), why=why)
        scores = _scores(updates, num_nearest=len(updates) - f - 2)
        ranked = sorted(range(len(updates)), key=scores.__getitem__)
        if math.isinf(scores[ranked[m - 1]]):
            damaged = f"{num_damaged(updates)} of {len(updates)} updates hold NaN or infinite entries"
            raise RunError(f"{damaged}: strategy.num_byzantine = {f} withstands {f} of these")
        return [updates[index] for index in ranked[:m]]


def make(options: Options) -> Krum:
    """Return Krum."""
    return Krum(options=options)


def _scores(updates: Sequence[ClientUpdate], *, num_nearest: int) -> list[float]:
    """Return each update's summed squared distance to its nearest others."""
    deltas = [update.delta for update in updates]
    rows: list[list[float]] = [[] for _ in deltas]
    for first, one in enumerate(deltas):
        for second, two in enumerate(deltas[:first]):
            distance = _squared_distance(one, two)
            rows[first].append(distance)
            rows[second].append(distance)
    return [sum(sorted(row)[:num_nearest]) for row in rows]


def _squared_distance(one: Tensors, two: Tensors) -> float:
    """Return the squared distance in float64, where float32 cannot overflow; infinite where it is not a number."""
    squares = (one.to(torch.float64) - two.to(torch.float64)).map(torch.square)
    total = float(sum(tensor.sum() for tensor in squares.values()))
    return total if math.isfinite(total) else math.inf
