"""LoRA averaged exactly: what the mean of factors misses goes into the frozen weights.

Singhal, Ponkshe, Vepakomma: FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models
(2024), arXiv 2410.09432: A <- sum_k p_k A_k, B <- sum_k p_k B_k, W <- W + s R with R = sum_k p_k B_k A_k - B A.

R = sum_k p_k (B_k - B)(A_k - A) is held as K - 1 products of rank r: the B_k - B add up to nothing under the weights,
so A may be replaced by one client's A_k, whose own term is then zero. One client alone leaves no residual. With
``max_rank`` R is cut to its best approximation of that rank, each round; the mean is then exact no more.

With ``client_rank`` client k holds the first r_k ranks; factors are averaged with zeros in the others, and R makes up
for that as for all else. In ranks that no client of a round held, A stays and B is zero.

Up r_k (d_out + d_in) floats a pair. Down, beside as many, the residual of all rounds so far: min((K-1) r (d_out +
d_in), d_out d_in) after the first, never more than d_out d_in, since a client may have missed rounds; the paper's own
count is of one round. Heads are averaged plainly. It needs every update of a round at once: K adapters of memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field

from fedpeft.adapters.base import Pair, Slot, pairs
from fedpeft.strategies import residual
from fedpeft.strategies.base import Stack, State
from fedpeft.strategies.ranked import Ranked, alive
from fedpeft.strategies.ranks import RankOptions
from fedpeft.strategies.stacking import Stacking, require_enough
from fedpeft.strategies.weighting import WeightingOptions, mean_of, moved
from fedpeft.tensors import Tensors

__all__ = ["FedExLora", "Options", "make"]


@final
class Options(RankOptions, WeightingOptions):
    """Options of FedEx-LoRA."""

    max_rank: int | None = Field(default=None, ge=1)
    """Rank that one round may add to the residual; all of it, which is exact, when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class FedExLora(residual.Merging, Ranked, Stacking):
    """Federated averaging of both factors, with the rest in the frozen weights."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter other than LoRA, or with a pair of less rank than some client's.

        Raises:
            UnsupportedError: says which.
        """
        residual.require_lora(slots, strategy="fedex_lora")
        self.require(slots, strategy="fedex_lora")

    def apply(self, slots: Sequence[Slot], state: State, total: Stack) -> State:
        """Move factors and heads by their mean delta, and add what the mean of products has more.

        Raises:
            TensorMismatchError: the updates are not of this adapter; names the first difference.
        """
        require_enough(total.updates, at_least=1, why="a mean")
        updates, weights = residual.side_by_side(total, weighting=self.options.weighting)
        mean = mean_of(updates, weighting=self.options.weighting)
        adapter = alive(moved(state.adapter, mean), state.adapter, slots, updates)
        deltas = [update.delta.to(torch.float64) for update in updates]
        terms = {pair.b.group: self._missing(pair, deltas, weights, mean) for pair in pairs(slots)}
        return State(adapter=adapter, memory=residual.grown(state.memory, slots, terms))

    def _missing(
        self, pair: Pair, deltas: Sequence[Tensors], weights: Sequence[float], mean: Tensors
    ) -> residual.Product:
        """Return s R as factors (d_out, (K-1) r) and ((K-1) r, d_in); the first client's A stands for the mean."""
        a, b, first = pair.a.name, pair.b.name, deltas[0]
        rows = [delta[a] - first[a] for delta in deltas[1:]]
        columns = [
            pair.scale * weight * (delta[b] - mean[b]) for delta, weight in zip(deltas[1:], weights[1:], strict=True)
        ]
        if not rows:
            return mean[b][:, :0], mean[a][:0]
        product = torch.cat(columns, dim=1), torch.cat(rows)
        return product if self.options.max_rank is None else residual.truncated(product, self.options.max_rank)


def make(options: Options) -> FedExLora:
    """Return FedEx-LoRA."""
    return FedExLora(options=options)
