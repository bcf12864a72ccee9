"""A strategy that is looked at while it works: what of the clients' mean product its next global adapter lacks.

Of one round, with W_k = s B_k A_k what client k trained (its factors as they arrive, at the rank and scale it was
asked for) and p_k what the strategy weighs it by:

    DW* = sum_k p_k W_k                       the clients' mean product, the aim of an exact server
    DW' = s B' A' + (S' - S)                  what the next global adapter adds, S the residual on frozen weights
    R   = DW* - DW'                           what the server's step loses of it, or adds of its own

``whole`` is ||R|| / ||DW*|| over all pairs together, ``step`` is ||R|| / ||DW* - s B A||, with B and A the factors that
the round started from: the share of the round's own movement. None where the divisor is zero, and in every round of a
strategy that has no pairs, or whose clients keep a factor that they train. Where all clients of a round train the same
first ranks at another scale (dylora), DW' is read at these too.

Norms come from QR cores of the stacked factors, float64; a matrix of the layer's size is made only where the strategy
itself has one on frozen weights. Seconds of the strategy's own server code are counted apart from all this.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from fedpeft.adapters.base import Pair, Slot, pairs
from fedpeft.strategies.base import ClientUpdate, State, Strategy
from fedpeft.strategies.ranks import padded
from fedpeft.tensors import Tensors

__all__ = ["Loss", "Watched", "loss_of_round"]

Factors = tuple[Tensor, Tensor]
"""B (d_out, q) and A (q, d_in), float64."""


@final
@dataclass(frozen=True, kw_only=True)
class Loss:
    """What one round lost; both None where that has no meaning."""

    whole: float | None = None
    step: float | None = None


@final
@dataclass
class Watched:
    """Stands in for a strategy and does what it does, to the bit; keeps K adapters of memory, as no strategy must."""

    inner: Strategy[Any]
    losses: list[Loss] = field(default_factory=list)
    """One a round."""
    seconds: list[float] = field(default_factory=list)
    """One a round: prepare, accumulate and apply of the strategy itself."""
    _updates: list[ClientUpdate] = field(default_factory=list)
    _seconds: float = 0.0

    def __getattr__(self, name: str) -> Any:
        """Hand all else to the strategy."""
        return getattr(self.inner, name)

    def prepare(self, slots: Sequence[Slot], state: State, update: ClientUpdate) -> ClientUpdate:
        """Keep what came, with the weight that the strategy gives it."""
        began = time.perf_counter()
        prepared = self.inner.prepare(slots, state, update)
        self._seconds += time.perf_counter() - began
        self._updates.append(replace(update, weight=prepared.weight))
        return prepared

    def accumulate(self, total: Any, update: ClientUpdate) -> Any:
        """Time the strategy's own."""
        began = time.perf_counter()
        total = self.inner.accumulate(total, update)
        self._seconds += time.perf_counter() - began
        return total

    def apply(self, slots: Sequence[Slot], state: State, total: Any) -> State:
        """Time the strategy's own, then measure."""
        began = time.perf_counter()
        after = self.inner.apply(slots, state, total)
        self.seconds.append(self._seconds + time.perf_counter() - began)
        self.losses.append(loss_of_round(self.inner, slots, state, after, self._updates))
        self._updates, self._seconds = [], 0.0
        return after


def loss_of_round(
    strategy: Strategy[Any], slots: Sequence[Slot], before: State, after: State, updates: Sequence[ClientUpdate]
) -> Loss:
    """Return what a round from ``before`` to ``after`` lost of these updates, as they came from the clients."""
    found = pairs(slots)
    if not found or any(_kept(pair, update) for pair in found for update in updates):
        return Loss()
    weights = _weights(strategy, updates)
    clients = [_trained(slots, before.adapter, update) for update in updates]
    shifted = _growth(strategy, slots, before, after)
    squares = torch.zeros(3, dtype=torch.float64)
    for pair in found:
        mean = [_scaled(pair, adapter, u, weight) for adapter, u, weight in zip(clients, updates, weights, strict=True)]
        asked = updates[0] if len({update.directive for update in updates}) == 1 else None
        start, end = (_scaled(pair, state.adapter, asked, -1.0) for state in (before, after))
        wanted = _square([*mean])
        squares += torch.tensor(
            [_square([*mean, end], shifted.get(pair.b.group)), wanted, _square([*mean, start])], dtype=torch.float64
        )
    lost, whole, step = (math.sqrt(value) for value in squares.tolist())
    return Loss(whole=lost / whole if whole else None, step=lost / step if step else None)


def _kept(pair: Pair, update: ClientUpdate) -> bool:
    """Tell whether the client trained a factor that it did not send."""
    asked = update.directive.train
    return any(slot.name not in update.delta and (asked is None or slot.name in asked) for slot in (pair.a, pair.b))


def _weights(strategy: Strategy[Any], updates: Sequence[ClientUpdate]) -> list[float]:
    """Return p_k: the strategy's own weights if it sets any, else examples if it says so, else one each."""
    by_examples = getattr(getattr(strategy, "options", None), "weighting", "uniform") == "examples"
    raw = [float(update.num_examples) if by_examples else 1.0 for update in updates]
    own = [update.weight for update in updates]
    if all(weight is not None for weight in own) and sum(own):  # type: ignore[arg-type]
        raw = [float(weight or 0.0) for weight in own]
    return [value / sum(raw) for value in raw]


def _trained(slots: Sequence[Slot], start: Tensors, update: ClientUpdate) -> Tensors:
    """Return the client's factors in full size, float64: where it began, moved by what it sent."""
    asked = update.directive
    delta = padded(update.delta, slots, rank=asked.rank, held=asked.held) if asked.rank else update.delta
    begun = start.to(torch.float64)
    return begun.replace(begun.select(delta) + delta.to(torch.float64))


def _growth(strategy: Strategy[Any], slots: Sequence[Slot], before: State, after: State) -> dict[str, Tensor]:
    """Return group -> what the round added to frozen weights, (d_out, d_in); empty for most strategies."""
    old, new = (strategy.residuals(slots, strategy.residual_parts(slots, state)) for state in (before, after))
    return {group: new[group].to(torch.float64) - old[group].to(torch.float64) for group in new}


def _scaled(pair: Pair, adapter: Tensors, update: ClientUpdate | None, weight: float) -> Factors:
    """Return weight * s B A of the ranks and at the scale that the update was asked for; whole without one."""
    rank = update.directive.rank if update else None
    scale = update.directive.scale if update else 1.0
    b, a = adapter[pair.b.name].to(torch.float64)[:, :rank], adapter[pair.a.name].to(torch.float64)[:rank]
    return b * (weight * pair.scale * scale), a


def _square(terms: Sequence[Factors], less: Tensor | None = None) -> float:
    """Return ||sum of B A - less||_F^2."""
    b, a = torch.cat([term[0] for term in terms], dim=1), torch.cat([term[1] for term in terms])
    if less is not None:
        return float((b @ a - less).square().sum())
    return float((torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T).square().sum())
