"""Clients that give up ranks: the last of a client's ranks are held small, and dropped for good where they shrank.

A client of r_k ranks may fall back to r' = max(1, floor(share r_k)). Its loss has strength * sum over pairs of
s ||B[:, r':]||_F ||A[r':]||_F added, a penalty that looks at no data; where this sum, without the strength, is less
after a round's training than it was in what the client received, it holds r' ranks from then on. Both are known to
the server, as received and received + delta, so the server draws the conclusion: nothing more travels, clients keep
nothing, and no client can claim a rank. The dropped ranks cross the network once more, in the update in which they
shrank, and count as lacking there.

State.memory holds ``ranks``, int64: at a client's number the ranks it had after it last trained, zero where that is
all of them or it never did. It is as long as the largest such number asks for, and checkpoints hold it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Generic, TypeVar, final

import torch
from torch import Tensor
from torch.linalg import vector_norm

from fedpeft.adapters.base import Slot, pairs
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.base import ClientUpdate, Directive, State, Strategy, Turn
from fedpeft.strategies.ranks import sliced
from fedpeft.tensors import Tensors

__all__ = ["Pruned", "PrunedTotal"]

T = TypeVar("T")
_RANKS = "ranks"


@final
@dataclass(frozen=True, kw_only=True)
class PrunedTotal(Generic[T]):
    """The total of the strategy within, and what is left to the clients of the round."""

    within: T
    left: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Client -> the ranks that are left to it, where these are not all."""


@final
@dataclass(frozen=True, kw_only=True)
class Pruned(Strategy[PrunedTotal[T]], Generic[T]):
    """A strategy of clients that hold the first ranks of each pair, around which ranks are given up."""

    within: Strategy[T]
    share: float
    """Of a client's ranks, those that it may fall back to."""
    strength: float
    """Of the penalty."""

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse what the strategy within refuses, and pairs of several ranks.

        Raises:
            UnsupportedError: says which.
        """
        self.within.check(slots)
        if len(ranks := {pair.a.shape[0] for pair in pairs(slots)}) > 1:
            raise UnsupportedError(
                f"strategy.prune = {self.share} counts a client's ranks alike in all pairs, and this adapter's have "
                f"ranks {sorted(ranks)}; give them one, without a rank_pattern, or leave prune out"
            )

    def init(self, slots: Sequence[Slot], adapter: Tensors) -> State:
        """Start with every rank."""
        return self._with(self.within.init(slots, adapter), torch.zeros(0, dtype=torch.int64))

    def directive(self, slots: Sequence[Slot], state: State, *, round_number: int, client: int) -> Directive:
        """Train the ranks that are left to this client."""
        asked = self.within.directive(slots, self._inner(state), round_number=round_number, client=client)
        ranks = state.memory[_RANKS]
        left = int(ranks[client]) if client < len(ranks) else 0
        return replace(asked, rank=left) if left else asked

    def start(self) -> PrunedTotal[T]:
        """Return the empty total."""
        return PrunedTotal(within=self.within.start())

    def prepare(self, slots: Sequence[Slot], state: State, update: ClientUpdate) -> ClientUpdate:
        """Return the update cut to the ranks that are left to the client, as the strategy within takes it.

        Raises:
            TensorMismatchError: the update is not the slice that was asked for; names the first difference.
        """
        asked = update.directive
        received = sliced(state.adapter.select(update.delta), slots, rank=asked.rank)
        update.delta.require(received.manifest(), where=f"update of client {update.client}")
        before = received.to(torch.float64)
        left = self._left(slots, before, before + update.delta.to(torch.float64))
        if left is not None:
            cut = sliced(update.delta, slots, rank=left)
            update = replace(update, delta=cut, directive=replace(asked, rank=left))
        return self.within.prepare(slots, self._inner(state), update)

    def _left(self, slots: Sequence[Slot], received: Tensors, trained: Tensors) -> int | None:
        """Return the rank to fall back to, if the ranks beyond it shrank."""
        rank = received[pairs(slots)[0].a.name].shape[0]
        before, after = (_beyond(slots, side, self._fallback(rank)) for side in (received, trained))
        return self._fallback(rank) if float(after) < float(before) else None

    def _fallback(self, rank: int) -> int:
        return max(1, int(self.share * rank))

    def accumulate(self, total: PrunedTotal[T], update: ClientUpdate) -> PrunedTotal[T]:
        """Add the update, and note the ranks that are left to the client."""
        rank = update.directive.rank
        left = total.left if rank is None else MappingProxyType({**total.left, update.client: rank})
        return PrunedTotal(within=self.within.accumulate(total.within, update), left=left)

    def apply(self, slots: Sequence[Slot], state: State, total: PrunedTotal[T]) -> State:
        """Return the state of the strategy within, with the ranks that are left."""
        ranks = state.memory[_RANKS]
        missing = max([len(ranks) - 1, *total.left]) + 1 - len(ranks)
        ranks = torch.cat([ranks, ranks.new_zeros(missing)])
        for client, rank in total.left.items():
            ranks[client] = rank
        return self._with(self.within.apply(slots, self._inner(state), total.within), ranks)

    def penalty(self, parameters: Mapping[str, Tensor], turn: Turn) -> Tensor | None:
        """Return strength * sum over pairs of s ||B[:, r':]|| ||A[r':]||; zero with zero gradient where a norm is."""
        rank = turn.directive.rank or pairs(turn.slots)[0].a.shape[0]
        return self.strength * _beyond(turn.slots, parameters, self._fallback(rank))

    def _inner(self, state: State) -> State:
        return State(adapter=state.adapter, memory=state.memory.without([_RANKS]))

    def _with(self, state: State, ranks: Tensor) -> State:
        return State(adapter=state.adapter, memory=state.memory.joined(Tensors({_RANKS: ranks})))


def _beyond(slots: Sequence[Slot], tensors: Mapping[str, Tensor], rank: int) -> Tensor:
    """Return the sum over pairs of s ||B[:, rank:]|| ||A[rank:]||."""
    return torch.stack(
        [
            pair.scale * vector_norm(tensors[pair.b.name][:, rank:]) * vector_norm(tensors[pair.a.name][rank:])
            for pair in pairs(slots)
        ]
    ).sum()
