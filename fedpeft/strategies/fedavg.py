"""Weighted mean of the clients' updates.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data (2017), arXiv 1602.05629: w <- w + sum_k (n_k / n) (w_k - w).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedpeft.adapters.base import Slot
from fedpeft.config.base import Frozen
from fedpeft.strategies.base import ClientUpdate, State, Strategy, WeightedSum
from fedpeft.strategies.weighting import Weighting, accumulate_weighted, apply_mean

__all__ = ["FedAvg", "Options", "make"]


@final
class Options(Frozen):
    """Options of FedAvg."""

    weighting: Weighting = "examples"
    """What a client counts for: its number of examples, or one."""


@final
@dataclass(frozen=True, kw_only=True)
class FedAvg(Strategy[WeightedSum]):
    """Federated averaging."""

    options: Options

    def start(self) -> WeightedSum:
        """Return an empty sum."""
        return WeightedSum()

    def accumulate(self, total: WeightedSum, update: ClientUpdate) -> WeightedSum:
        """Add weight * delta."""
        return accumulate_weighted(total, update, weighting=self.options.weighting)

    def apply(self, slots: Sequence[Slot], state: State, total: WeightedSum) -> State:
        """Move the global adapter by the mean delta."""
        return apply_mean(state, total)


def make(options: Options) -> FedAvg:
    """Return federated averaging."""
    return FedAvg(options=options)
