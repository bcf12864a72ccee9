"""What privacy adds to a round on the server: the charge before it, the cut of each update, the noise on the sum."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from fedpeft.privacy.ledger import Charge, Ledger
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.per_client import clipped, length
from fedpeft.privacy.randomness import Randomness, gaussian, source
from fedpeft.rounds.journal import inputs_of
from fedpeft.rounds.tally import Tally
from fedpeft.strategies.base import ClientUpdate, State, WeightedSum
from fedpeft.tensors import Tensors
from fedpeft.timing import timed
from fedpeft.training.workbench import Workbench

__all__ = ["Guard", "guard"]

_CLIP = "clip"


@final
@dataclass(frozen=True, kw_only=True)
class Guard:
    """The server's half of a mechanism; of unit example it only keeps the ledger, the clients do the rest."""

    bench: Workbench
    mechanism: Mechanism
    ledger: Ledger

    @property
    def central(self) -> bool:
        """Whether updates are cut and noise is added here."""
        privacy = self.mechanism.privacy
        return privacy.unit == "client" and privacy.placement == "central"

    def clip(self, state: State) -> float:
        """Return the norm that a round from this state cuts updates to."""
        return float(state.clip[_CLIP]) if state.clip else self.mechanism.privacy.clip

    @timed("privacy")
    def charge(self, state: State, cohort: Sequence[int], round_number: int, kept: Collection[int] = ()) -> float:
        """Charge a round before it begins; return epsilon with it.

        Clients whose replies are ``kept`` from an earlier start of the round are not asked: where each adds noise of
        its own, and secret, what they released is charged already. All else of a repeated round is charged again, or
        is known by the ledger to be the same release.

        Raises:
            RunError: it would exceed the budget; nothing has been sent.
        """
        privacy, clients = self.mechanism.privacy, tuple(cohort)
        if privacy.unit == "example" and privacy.noise == "secure":
            clients = tuple(client for client in cohort if client not in kept)
            if cohort and not clients:
                return self.mechanism.spent(self.ledger.charged_rounds(privacy))
        charge = Charge(round=round_number, clients=clients, inputs=inputs_of(state))
        return self.mechanism.spent(self.ledger.charge(charge, self.mechanism))

    @timed("privacy")
    def limited(self, update: ClientUpdate, state: State) -> ClientUpdate:
        """Return an update that counts as one client, of at most the clip's norm where noise is added here."""
        if not self.central:
            return update
        return replace(update, delta=clipped(update.delta, self.clip(state)), num_examples=1)

    @timed("privacy")
    def within(self, update: ClientUpdate, state: State) -> bool:
        """Tell whether an update is within the clip, where that is counted."""
        return self.mechanism.bit_noise is not None and length(update.delta) <= self.clip(state)

    @timed("privacy")
    def renewed(self, after: State, before: State, tally: Tally, round_number: int) -> State:
        """Return the state with the clip of the next round, where it follows the updates.

        Andrew et al. (2021), arXiv 1905.03871: C exp(-eta (share within C, with noise, less the quantile)).
        """
        adaptive, deviation = self.mechanism.privacy.adaptive, self.mechanism.bit_noise
        if adaptive is None or deviation is None:
            return after
        randomness = self._source("clip", round_number, inputs_of(before), tally.num_within, tally.num_updates)
        noise = float(randomness.gaussian((1,), deviation * self.mechanism.noise_scale))
        share = (tally.num_within - tally.num_updates / 2 + noise) / self.mechanism.divisor + 0.5
        clip = self.clip(before) * math.exp(-adaptive.learning_rate * (share - adaptive.quantile))
        return replace(after, clip=Tensors({_CLIP: torch.tensor([clip], dtype=torch.float64)}))

    @timed("privacy")
    def noised(self, total: Any, state: State, round_number: int) -> Any:
        """Return the round's total with noise, to be divided by the expected cohort, whoever replied.

        The noise goes the way of an update: only what was asked for carries it, and ranks that nobody trained keep
        their bits.
        """
        if self.mechanism.privacy.unit == "example":
            return total
        if not self.central:
            return replace(total, weight=self.mechanism.divisor)
        slots, strategy = self.bench.adapted.attached.slots, self.bench.strategy
        asked = strategy.directive(slots, state, round_number=round_number, client=0)
        randomness = self._source("server", round_number, inputs_of(state), _sum(total))
        deviation = self.mechanism.std_at(self.clip(state))
        noise = gaussian(asked.select(slots, strategy.uplink(slots)), deviation, randomness)
        update = strategy.prepare(slots, state, ClientUpdate(client=0, delta=noise, num_examples=1, directive=asked))
        summed: WeightedSum = strategy.accumulate(total, update)
        return replace(summed, weight=self.mechanism.divisor)

    def _source(self, *purpose: str | int) -> Randomness:
        return source(self.mechanism.privacy, self.bench.experiment.seed, *purpose)


def guard(bench: Workbench, ledger: Ledger) -> Guard | None:
    """Return the guard of an experiment with a [privacy] table."""
    return Guard(bench=bench, mechanism=bench.mechanism, ledger=ledger) if bench.mechanism is not None else None


def _sum(total: WeightedSum) -> str:
    """Name what the noise is added to, so that other replies have other noise."""
    return total.tensors.to(torch.float64).digest() if total.tensors is not None else "nothing"
