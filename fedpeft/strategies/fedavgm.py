"""FedAvg with momentum on the server.

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification (2019),
arXiv 1909.06335: v <- beta v + D, w <- w + v, with D the mean delta; the paper writes D with the other sign. A constant
D comes to move w by D / (1 - beta) a round. The momentum is one adapter in float64, kept from round to round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from pydantic import Field

from fedpeft.adapters.base import Slot
from fedpeft.strategies.base import State, WeightedSum
from fedpeft.strategies.moments import MOMENTUM, moment, remember, zeros
from fedpeft.strategies.weighting import Averaging, WeightingOptions, mean_delta, moved
from fedpeft.tensors import Tensors

__all__ = ["FedAvgM", "Options", "make"]


@final
class Options(WeightingOptions):
    """Options of FedAvgM."""

    momentum: float = Field(default=0.9, gt=0, lt=1)
    """The share beta of the last step that is taken again; fedavg is the strategy without it."""
    learning_rate: float = Field(default=1.0, gt=0)
    """Factor on each step; the paper's is 1."""


@final
@dataclass(frozen=True, kw_only=True)
class FedAvgM(Averaging):
    """Federated averaging with server momentum."""

    options: Options

    def init(self, slots: Sequence[Slot], adapter: Tensors) -> State:
        """Start with no momentum."""
        return State(adapter=adapter, memory=remember({MOMENTUM: zeros(adapter)}))

    def apply(self, slots: Sequence[Slot], state: State, total: WeightedSum) -> State:
        """Add the mean delta to the momentum, and the momentum to the adapter."""
        mean, old = mean_delta(total), moment(state, MOMENTUM)
        momentum = old.select(mean) * self.options.momentum + mean
        adapter = moved(state.adapter, momentum * self.options.learning_rate)
        return State(adapter=adapter, memory=remember({MOMENTUM: old.replace(momentum)}))


def make(options: Options) -> FedAvgM:
    """Return FedAvg with server momentum."""
    return FedAvgM(options=options)
