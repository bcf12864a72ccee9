"""Weighted mean of the clients' updates.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data (2017), arXiv 1602.05629: w <- w + sum_k (n_k / n) (w_k - w).
"""

from dataclasses import dataclass
from typing import final

from fedpeft.strategies.weighting import Averaging, WeightingOptions

__all__ = ["FedAvg", "Options", "make"]


@final
class Options(WeightingOptions):
    """Options of FedAvg."""


@final
@dataclass(frozen=True, kw_only=True)
class FedAvg(Averaging):
    """Federated averaging."""

    options: Options


def make(options: Options) -> FedAvg:
    """Return federated averaging."""
    return FedAvg(options=options)
