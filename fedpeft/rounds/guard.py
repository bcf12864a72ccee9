"""What privacy adds to a round on the server: the charge before it, the cut of each update, the noise on the sum."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from fedpeft.privacy.ledger import Charge, Ledger
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.per_client import clipped
from fedpeft.privacy.randomness import gaussian, source
from fedpeft.strategies.base import ClientUpdate, State, WeightedSum
from fedpeft.timing import timed
from fedpeft.training.workbench import Workbench

__all__ = ["Guard", "guard"]


@final
@dataclass(frozen=True, kw_only=True)
class Guard:
    """The server's half of a mechanism; of unit example it only keeps the ledger, the clients do the rest."""

    bench: Workbench
    mechanism: Mechanism
    ledger: Ledger

    @property
    def central(self) -> bool:
        """Whether noise is added here."""
        return self.mechanism.privacy.unit == "client"

    @timed("privacy")
    def charge(self, state: State, cohort: Sequence[int], round_number: int) -> float:
        """Charge a round before it begins; return epsilon with it.

        Raises:
            RunError: it would exceed the budget; nothing has been sent.
        """
        charge = Charge(round=round_number, clients=tuple(cohort), inputs=_digest(state))
        return self.mechanism.spent(self.ledger.charge(charge, self.mechanism))

    @timed("privacy")
    def limited(self, update: ClientUpdate) -> ClientUpdate:
        """Return an update that counts as one client, of at most the clip's norm where noise is added here."""
        if not self.central:
            return update
        return replace(update, delta=clipped(update.delta, self.mechanism.privacy.clip), num_examples=1)

    @timed("privacy")
    def noised(self, total: Any, state: State, round_number: int) -> Any:
        """Return the round's total with noise, to be divided by the expected cohort, whoever replied.

        The noise goes the way of an update: only what was asked for carries it, and ranks that nobody trained keep
        their bits.
        """
        if not self.central:
            return total
        slots, strategy, privacy = self.bench.adapted.attached.slots, self.bench.strategy, self.mechanism.privacy
        asked = strategy.directive(slots, state, round_number=round_number, client=0)
        generator = source(privacy, self.bench.experiment.seed, "server", round_number, _digest(state), _sum(total))
        secure = privacy.noise == "secure"
        noise = gaussian(asked.select(slots, strategy.uplink(slots)), self.mechanism.std, generator, secure=secure)
        update = strategy.prepare(slots, state, ClientUpdate(client=0, delta=noise, num_examples=1, directive=asked))
        summed: WeightedSum = strategy.accumulate(total, update)
        return replace(summed, weight=self.mechanism.divisor)


def guard(bench: Workbench, ledger: Ledger) -> Guard | None:
    """Return the guard of an experiment with a [privacy] table."""
    return Guard(bench=bench, mechanism=bench.mechanism, ledger=ledger) if bench.mechanism is not None else None


def _digest(state: State) -> str:
    return "".join(tensors.digest() for tensors in (state.adapter, state.memory, state.exact))


def _sum(total: WeightedSum) -> str:
    """Name what the noise is added to, so that other replies have other noise."""
    return total.tensors.to(torch.float64).digest() if total.tensors is not None else "nothing"
