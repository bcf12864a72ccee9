"""LoRA by the product, at the rank its energy asks for: small singular values of the mean update are dropped.

Ramesh, Dass: FLoRIST: Singular Value Thresholding for Efficient and Accurate Federated Fine-Tuning of Large Language
Models (2025), arXiv 2506.09199: of the singular values of sum_k p_k B_k A_k, from the QR cores of the stacked factors,
the fewest are kept that hold tau of the energy sum s^2, at most the pair's rank r. The squared error is at most
(1 - tau) of ||sum_k p_k B_k A_k||^2 wherever r leaves room for them.

The adapter keeps its shape: the columns of B beyond the kept ones are zero, and the rows of A there are seeded
Gaussian, of unit length on average, so that training can use them. They travel as well, r_k (d_out + d_in) floats a
pair up and down; the paper sends the kept ones alone. With ``client_rank`` client k is sent the first r_k ranks, the
leading directions, and its B_k A_k is of those alone; else r_k = r. It needs every update of a round at once:
K adapters of memory. Heads, and slots that are no factor of a pair, are averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedpeft.adapters.base import Slot
from fedpeft.strategies.base import Stack, State
from fedpeft.strategies.held import require_pairs
from fedpeft.strategies.products import Split, recomputed
from fedpeft.strategies.ranked import Ranked
from fedpeft.strategies.ranks import RankOptions
from fedpeft.strategies.stacking import Stacking
from fedpeft.strategies.weighting import WeightingOptions

__all__ = ["Florist", "Options", "make"]


@final
class Options(RankOptions, WeightingOptions):
    """Options of FLoRIST."""

    tau: float = Field(default=0.99, gt=0, le=1)
    """Share of the energy, the sum of the squared singular values, that is kept at least."""
    split: Split = "balanced"
    """Square roots of the singular values on both factors, or ("one_sided", A orthonormal) all on B."""


@final
@dataclass(frozen=True, kw_only=True)
class Florist(Ranked, Stacking):
    """The decomposition of the mean product, cut by energy."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without A/B pairs, or with a pair of less rank than some client's.

        Raises:
            UnsupportedError: says which.
        """
        require_pairs(slots, strategy="florist", why="factors the product of each A/B pair anew")
        self.require(slots, strategy="florist")

    def apply(self, slots: Sequence[Slot], state: State, total: Stack) -> State:
        """Factor each pair anew, at its own rank, and average the rest.

        Raises:
            RunError: the updates weigh nothing, so there is no mean.
        """
        options = self.options
        return recomputed(slots, state, total, weighting=options.weighting, split=options.split, keep=self._keep)

    def _keep(self, values: Tensor) -> int:
        """Return the fewest values, shape (m,) and descending, that hold tau of the energy."""
        energy = torch.cumsum(values.square(), dim=0)
        return int((energy < self.options.tau * energy[-1]).sum()) + 1


def make(options: Options) -> Florist:
    """Return FLoRIST."""
    return Florist(options=options)
