"""LoRA stacked: every client's product is merged into the frozen weights, and a fresh adapter begins each round.

Wang, Shen, He, Sun, Wang, Lyu, Li: FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations (2024), arXiv 2409.05976: W <- W + s sum_k p_k B_k A_k, as [p_1 B_1 ... p_K B_K] [A_1; ...; A_K], one factor
alone carrying the weight; then A is drawn anew and B is zero. Exact: the model after a round is the mean of the
clients' models.

The new A is LoRA's Kaiming-uniform from the digest of the A before it, so each is known to all who were sent that one
and hangs on the plan's seed and the number of rounds alone. Since B starts over in every round, the learning rate that
serves it best is not the one that serves averaging: tune it for this method.

With ``client_rank`` client k holds the first r_k ranks of the fresh adapter, and stacks as many.

Up r_k (d_out + d_in) floats a pair. Down, beside as many for the fresh adapter, the residual of all rounds so far:
min(sum_k r_k (d_out + d_in), d_out d_in) after the first, never more than d_out d_in, since a client may have
missed rounds; the paper sends each round's stack alone. Heads are averaged plainly. It needs every update of a round at
once: K adapters of memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fedpeft.adapters.base import Pair, Slot, pairs
from fedpeft.seeds import generator
from fedpeft.strategies import residual
from fedpeft.strategies.base import Stack, State
from fedpeft.strategies.ranked import Ranked
from fedpeft.strategies.ranks import RankOptions
from fedpeft.strategies.stacking import Stacking, require_enough
from fedpeft.strategies.weighting import WeightingOptions, mean_of, moved
from fedpeft.tensors import Tensors

__all__ = ["Flora", "Options", "make"]


@final
class Options(RankOptions, WeightingOptions):
    """Options of FLoRA."""


@final
@dataclass(frozen=True, kw_only=True)
class Flora(residual.Merging, Ranked, Stacking):
    """Stacked products merged into the frozen weights."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter other than LoRA, or with a pair of less rank than some client's.

        Raises:
            UnsupportedError: says which.
        """
        residual.require_lora(slots, strategy="flora")
        self.require(slots, strategy="flora")

    def apply(self, slots: Sequence[Slot], state: State, total: Stack) -> State:
        """Merge the stack, move heads by their mean delta, begin each pair anew.

        Raises:
            TensorMismatchError: the updates are not of this adapter; names the first difference.
        """
        require_enough(total.updates, at_least=1, why="a stack")
        updates, weights = residual.side_by_side(total, weighting=self.options.weighting)
        averaged = moved(state.adapter, mean_of(updates, weighting=self.options.weighting))
        start = state.adapter.to(torch.float64)
        clients = [start.replace(start.select(update.delta) + update.delta.to(torch.float64)) for update in updates]
        terms = {pair.b.group: _stack(pair, clients, weights) for pair in pairs(slots)}
        fresh = dict(entry for pair in pairs(slots) for entry in _fresh(pair, state.adapter[pair.a.name]))
        return State(adapter=averaged.replace(fresh), memory=residual.grown(state.memory, slots, terms))


def make(options: Options) -> Flora:
    """Return FLoRA."""
    return Flora(options=options)


def _stack(pair: Pair, clients: Sequence[Tensors], weights: Sequence[float]) -> residual.Product:
    """Return [s p_1 B_1 ... s p_K B_K] (d_out, K r) and [A_1; ...; A_K] (K r, d_in)."""
    columns = [pair.scale * weight * adapter[pair.b.name] for adapter, weight in zip(clients, weights, strict=True)]
    return torch.cat(columns, dim=1), torch.cat([adapter[pair.a.name] for adapter in clients])


def _fresh(pair: Pair, a: Tensor) -> list[tuple[str, Tensor]]:
    """Return A (r, d_in) drawn from the one before it, and B (d_out, r) of zeros."""
    seed = int(Tensors({pair.a.name: a}).digest()[:15], 16)
    drawn = nn.init.kaiming_uniform_(torch.empty(pair.a.shape), a=math.sqrt(5), generator=generator(seed, "flora"))
    return [(pair.a.name, drawn), (pair.b.name, torch.zeros(pair.b.shape))]
