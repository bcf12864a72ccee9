"""Every update of a round side by side, and rules over the sorted values of each coordinate: what robust means share.

The stack holds K adapters in float32 until the round ends, and one slot's K copies twice more while that slot is
sorted. Clients count alike: a number of examples is the client's own claim. NaN sorts above everything, infinities to
their ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.errors import RunError
from fedpeft.strategies.base import ClientUpdate, Stack, Strategy
from fedpeft.tensors import Tensors

__all__ = ["Stacking", "coordinatewise", "num_damaged", "push", "require_enough"]

Rule = Callable[[Tensor], Tensor]
"""Values of every client, shape (K, *slot), ascending along the first axis -> float64 of the slot's shape."""


@dataclass(frozen=True, kw_only=True)
class Stacking(Strategy[Stack]):
    """A strategy that needs every update of a round side by side: abstract."""

    def start(self) -> Stack:
        """Return an empty stack."""
        return Stack()

    def accumulate(self, total: Stack, update: ClientUpdate) -> Stack:
        """Keep the update."""
        return push(total, update)


def push(total: Stack, update: ClientUpdate) -> Stack:
    """Return the stack with one more update.

    Raises:
        TensorMismatchError: the update's tensors are not those of the updates before; names the first difference.
    """
    if total.updates:
        update.delta.require(total.updates[0].delta.manifest(), where=f"update of client {update.client}")
    return Stack(updates=(*total.updates, update))


def require_enough(updates: Sequence[ClientUpdate], *, at_least: int, why: str) -> None:
    """Refuse a round with too few updates.

    Raises:
        RunError: names how many there are, how many are needed and why.
    """
    if len(updates) < at_least:
        raise RunError(f"{len(updates)} update(s) this round: {why} needs at least {at_least}; draw more clients")


def coordinatewise(updates: Sequence[ClientUpdate], rule: Rule, *, withstands: int, name: str) -> Tensors:
    """Apply a rule to the sorted values of each coordinate, slot by slot; the order of clients cannot matter.

    Raises:
        RunError: the result is not finite, because more updates than the rule withstands are not.
    """
    step = Tensors((slot, rule(_ascending([update.delta[slot] for update in updates]))) for slot in updates[0].delta)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in step.values()):
        raise RunError(
            f"{num_damaged(updates)} of {len(updates)} updates hold NaN or infinite entries: "
            f"strategy {name!r} withstands {withstands} of these"
        )
    return step


def num_damaged(updates: Sequence[ClientUpdate]) -> int:
    """Return how many updates hold an entry that is not finite."""
    return sum(not all(bool(torch.isfinite(tensor).all()) for tensor in update.delta.values()) for update in updates)


def _ascending(tensors: Sequence[Tensor]) -> Tensor:
    """Sort along a new first axis; -0.0 becomes 0.0, so that equal values have equal bits."""
    return torch.sort(torch.stack(list(tensors)) + 0.0, dim=0).values
