"""How far an update would move the model: what a bound on a client's influence is of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedpeft.adapters.base import Slot, pairs
from fedpeft.strategies.base import ClientUpdate
from fedpeft.strategies.products import Product
from fedpeft.strategies.ranks import padded
from fedpeft.tensors import Tensors

__all__ = ["product_norm", "update_norm"]


def update_norm(update: ClientUpdate) -> float:
    """Return the L2 norm of all that a client sent, the change and what came beside it, in float64."""
    return update.delta.joined(update.beside).norm()


def product_norm(slots: Sequence[Slot], adapter: Tensors, update: ClientUpdate) -> float:
    """Return the Frobenius norm, over all A/B pairs together, of what the update does to the adapted weights.

    That is scale ((B + dB) (A + dA) - B A) of each pair, where A and B are what the client was sent and a factor that
    it did not send has not changed. By factors: dB (A + dA) + B dA, so nothing cancels and no weight is made whole.
    """
    asked = update.directive
    changes = padded(update.delta, slots, rank=asked.rank, held=asked.held)
    squares = 0.0
    for pair in pairs(slots):
        a, b = (adapter[slot.name].to(torch.float64) for slot in (pair.a, pair.b))
        da, db = (_change(changes, slot, like) for slot, like in ((pair.a, a), (pair.b, b)))
        change = Product(b=torch.cat([db, b], dim=1), a=torch.cat([a + da, da], dim=0))
        squares += (asked.scale * pair.scale * change.norm()) ** 2
    return float(squares**0.5)


def _change(changes: Tensors, slot: Slot, like: Tensor) -> Tensor:
    return changes[slot.name].to(torch.float64) if slot.name in changes else torch.zeros_like(like)
