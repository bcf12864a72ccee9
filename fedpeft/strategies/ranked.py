"""Clients of unequal ranks in a stack: client k holds and trains the first r_k ranks, and lacks the others.

What a client lacks counts as zero, so that B_k A_k is the product of the factors that it holds, and the mean of the
products is that of the clients' models. In the stack its delta is therefore minus the global factor beyond its ranks:
every update is of the adapter's size, and no rule over updates needs to know of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedpeft.adapters.base import Slot
from fedpeft.strategies.base import ClientUpdate, Directive, Stack, State, Strategy
from fedpeft.strategies.ranks import RankOptions, padded, rank_axes, require_ranks, sliced
from fedpeft.tensors import Tensors

__all__ = ["Ranked", "alive"]


@dataclass(frozen=True, kw_only=True)
class Ranked(Strategy[Stack]):
    """A strategy whose clients may hold fewer ranks than the server: abstract."""

    options: RankOptions

    def require(self, slots: Sequence[Slot], *, strategy: str) -> None:
        """Refuse an adapter with a pair of less rank than some client's.

        Raises:
            UnsupportedError: names the option, the value and the bound.
        """
        require_ranks(slots, self.options.client_rank or (), strategy=strategy, option="client_rank")

    def directive(self, slots: Sequence[Slot], state: State, *, round_number: int, client: int) -> Directive:
        """Train the ranks that this client holds."""
        return Directive(rank=self.options.rank_for(client))

    def period(self) -> int:
        """Return the length of client_rank."""
        return len(self.options.client_rank or (1,))

    def prepare(self, slots: Sequence[Slot], state: State, update: ClientUpdate) -> ClientUpdate:
        """Return the update in full size; added to the global factors it is zero in the ranks that the client lacks.

        Raises:
            TensorMismatchError: the update is not the slice that was asked for; names the first difference.
        """
        rank = update.directive.rank
        if rank is None:
            return update
        delta = padded(update.delta, slots, rank=rank, where=f"update of client {update.client}")
        whole = state.adapter.select(delta)
        lacking = whole - padded(sliced(whole, slots, rank=rank), slots, rank=rank)
        return replace(update, delta=delta - lacking)


def alive(averaged: Tensors, before: Tensors, slots: Sequence[Slot], updates: Sequence[ClientUpdate]) -> Tensors:
    """Return the averaged adapter with A as it was before in the ranks that no client of the round held, B zero there.

    The product is the same. A rank that is zero in both factors would never train again.
    """
    ranks = [update.directive.rank for update in updates]
    most = max((rank for rank in ranks if rank is not None), default=0)
    if None in ranks or not most:
        return averaged

    def mended(name: str, axis: int) -> Tensor:
        mean, old = averaged[name], before[name]
        beyond = old[most:] if axis == 0 else torch.zeros_like(old[:, most:])
        return torch.cat([mean.narrow(axis, 0, most), beyond], dim=axis)

    return averaged.replace({name: mended(name, axis) for name, axis in rank_axes(slots).items()})
