"""The weighted mean of client updates, one update at a time: the server half that several strategies share.

The running sum is float64 and of the adapter's size, however many clients reply.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedpeft.adapters.base import Slot
from fedpeft.config.base import Frozen
from fedpeft.errors import RunError
from fedpeft.strategies.base import ClientUpdate, State, Strategy, WeightedSum
from fedpeft.tensors import Tensors

__all__ = [
    "Averaging",
    "Weighting",
    "WeightingOptions",
    "accumulate_weighted",
    "apply_mean",
    "mean_delta",
    "mean_of",
    "moved",
]

Weighting = Literal["examples", "uniform"]
"""What a client counts for: its number of examples, or one."""


class WeightingOptions(Frozen):
    """What strategies share that take the weighted mean of updates."""

    weighting: Weighting = "examples"
    """What a client counts for: its number of examples, or one."""


@dataclass(frozen=True, kw_only=True)
class Averaging(Strategy[WeightedSum]):
    """A strategy that streams: abstract, for those that move by the weighted mean delta, or by something made of it."""

    options: WeightingOptions

    def sums(self) -> bool:
        """All that is used is the sum, where no client's number of examples weighs it."""
        return self.options.weighting == "uniform"

    def takes_feedback(self) -> bool:
        """What a round lacks of a change, a later mean has."""
        return True

    def start(self) -> WeightedSum:
        """Return an empty sum."""
        return WeightedSum()

    def accumulate(self, total: WeightedSum, update: ClientUpdate) -> WeightedSum:
        """Add weight * delta."""
        return accumulate_weighted(total, update, weighting=self.options.weighting)

    def apply(self, slots: Sequence[Slot], state: State, total: WeightedSum) -> State:
        """Move what was trained by its mean delta."""
        return apply_mean(state, total)


def accumulate_weighted(total: WeightedSum, update: ClientUpdate, *, weighting: Weighting) -> WeightedSum:
    """Return the total with weight * delta added.

    Raises:
        TensorMismatchError: the update's tensors are not those of the updates before; names the first difference.
    """
    weight = float(update.num_examples) if weighting == "examples" else 1.0
    weighted = update.delta.to(torch.float64) * weight
    return WeightedSum(
        tensors=weighted if total.tensors is None else total.tensors + weighted,
        weight=total.weight + weight,
        num_updates=total.num_updates + 1,
    )


def mean_delta(total: WeightedSum) -> Tensors:
    """Return the weighted mean of the updates, float64.

    Raises:
        RunError: the updates weigh nothing, so there is no mean.
    """
    if total.tensors is None or total.weight <= 0:
        raise RunError(f"no mean of {total.num_updates} updates of total weight {total.weight}: expected weight > 0")
    return total.tensors.map(lambda tensor: tensor / total.weight)


def mean_of(updates: Iterable[ClientUpdate], *, weighting: Weighting) -> Tensors:
    """Return the weighted mean of updates that are at hand together, float64.

    Raises:
        RunError: the updates weigh nothing, so there is no mean.
        TensorMismatchError: the updates' tensors are not the same; names the first difference.
    """
    total = WeightedSum()
    for update in updates:
        total = accumulate_weighted(total, update, weighting=weighting)
    return mean_delta(total)


def moved(adapter: Tensors, step: Tensors) -> Tensors:
    """Return the adapter with a float64 step added to the slots it names; summed in float64, rounded once.

    An entry whose step is zero keeps its bits, the sign of zero included.

    Raises:
        TensorMismatchError: the step is not of this adapter; names the first difference.
    """
    before = adapter.select(step)
    sums = (before.to(torch.float64) + step).to(torch.float32)
    return adapter.replace({name: torch.where(step[name] == 0, before[name], sums[name]) for name in before})


def apply_mean(state: State, total: WeightedSum) -> State:
    """Return the state with the mean delta added to the slots that were trained.

    Raises:
        RunError: the updates weigh nothing, so there is no mean.
        TensorMismatchError: the updates are not of this adapter; names the first difference.
    """
    return State(adapter=moved(state.adapter, mean_delta(total)), memory=state.memory)
