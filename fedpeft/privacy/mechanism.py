"""A mechanism as one value: sampler, clip, noise and accountant, which cannot be mixed apart.

Neighbours differ by one example, or one client, more or less (add/remove).

Example: in each step each example of a client is drawn with probability q on its own (Poisson), its gradient over all
trained tensors is cut to L2 norm C, Gaussian noise of standard deviation z C is added to the sum, and the sum is
divided by the constant train.batch_size. So one example moves the sum by at most C, and a round is ``steps`` of these
releases. q, z, C, steps and divisor are the experiment's: they tell nothing of any client's data. Clients hold disjoint
examples, hence the federation's epsilon is the largest of any client's (parallel composition); clients that are charged
as many rounds have the same. It holds against the server, which sees noised sums only.

Client: in each round each client is drawn with probability q = n / N on its own, or all are (q = 1), its whole update
is cut to C on the server, as it was decoded, and noise of standard deviation z C is added to the sum, which is divided
by the constant n. So one client moves the sum by at most C. It holds for what the server publishes: the adapter.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from fedpeft.config import Rounds, Train
from fedpeft.config.privacy import Privacy
from fedpeft.errors import ConfigError, RunError
from fedpeft.privacy import accounting

__all__ = ["Mechanism", "mechanism"]

SLACK = 1e-9
"""Relative, of an epsilon that is compared with the budget it was made from."""


@final
@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """What is released in a round, and what it costs."""

    privacy: Privacy
    noise_multiplier: float
    """z."""
    sample_rate: float
    """q, of one step."""
    steps: int
    """Releases a round: local steps of unit example, 1 of unit client."""
    planned_rounds: int
    """Rounds that the budget is made for, spare ones among them."""
    divisor: float
    """Of the noised sum: the expected batch, or the expected cohort."""
    noise_scale: float = 1.0
    """Times z C: below 1 where few clients stand in for the cohort of a larger federation."""

    @property
    def std(self) -> float:
        """Standard deviation of the noise on a sum."""
        return self.noise_multiplier * self.privacy.clip * self.noise_scale

    def spent(self, num_rounds: int) -> float:
        """Return epsilon at the plan's delta after so many rounds."""
        return accounting.epsilon(
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.steps * num_rounds,
            delta=self.privacy.delta,
            accountant=self.privacy.accountant,
        )

    @cached_property
    def budget(self) -> float:
        """The epsilon that is never exceeded: the one asked for, else that of the planned rounds."""
        return self.privacy.epsilon or self.spent(self.planned_rounds)

    def require(self, num_rounds: int) -> None:
        """Refuse a round that would exceed the budget, before anything of it is sent.

        Raises:
            RunError: names what would be spent, the budget and the remedy.
        """
        if num_rounds <= self.planned_rounds or self.spent(num_rounds) <= self.budget * (1 + SLACK):
            return
        raise RunError(
            f"privacy: this round would be the {num_rounds}th charged (repeated ones count again), at epsilon "
            f"{self.spent(num_rounds):.4g}, and the budget is {self.budget:.4g} at delta {self.privacy.delta:g}; "
            "nothing was sent and the last checkpoint stands; another run may set privacy.spare_rounds"
        )

    def statement(self, num_rounds: int) -> dict[str, Any]:
        """Return what may be claimed after so many charged rounds, in words and numbers."""
        privacy, example = self.privacy, self.privacy.unit == "example"
        trust = (
            "none in the server: noise is added on the client in each step"
            if example
            else "the server, which sees each update: what holds is of the adapter it publishes, not of its run folder"
        )
        said = {
            "unit": privacy.unit,
            "epsilon": self.spent(num_rounds),
            "delta": privacy.delta,
            "budget": self.budget,
            "charged_rounds": num_rounds,
            "adjacency": f"one {privacy.unit} more or less",
            "sampling": "all take part" if self.sample_rate == 1 else f"Poisson, rate {self.sample_rate:g}",
            "accountant": privacy.accountant,
            "noise_multiplier": self.noise_multiplier,
            "clip": privacy.clip,
            "trust": trust,
            "composition": "the largest of any client's, whose examples are disjoint" if example else "over all rounds",
            "randomness": "secure" if privacy.noise == "secure" else "REPRODUCIBLE: for research, not private in use",
        }
        if privacy.population is not None:
            valid = f"simulated at {self.divisor:g} clients a round, valid at {privacy.cohort} of {privacy.population}"
            said["valid_for"] = valid
        return said


def mechanism(privacy: Privacy, *, train: Train, rounds: Rounds, num_clients: int) -> Mechanism:
    """Return the mechanism that an experiment runs.

    Raises:
        ConfigError: a setting under which the stated epsilon would not be true; names it and the remedy.
    """
    planned = rounds.num_rounds + privacy.spare_rounds
    made = _of_examples(privacy, train) if privacy.unit == "example" else _of_clients(privacy, rounds, num_clients)
    steps, rate = int(made["steps"]), float(made["sample_rate"])
    noise = privacy.noise_multiplier
    if noise is None:
        assert privacy.epsilon is not None  # noqa: S101 - the options hold one of both
        noise = accounting.noise_multiplier(
            epsilon=privacy.epsilon,
            sample_rate=rate,
            steps=steps * planned,
            delta=privacy.delta,
            accountant=privacy.accountant,
        )
    found = Mechanism(privacy=privacy, noise_multiplier=noise, planned_rounds=planned, **made)
    if privacy.noise_multiplier is not None and found.spent(planned) > found.budget * (1 + SLACK):
        raise ConfigError(
            f"privacy.noise_multiplier = {noise}: {planned} rounds cost epsilon {found.spent(planned):.4g}, more than "
            f"privacy.epsilon = {privacy.epsilon}; raise it, or leave it out to have it follow from epsilon"
        )
    return found


def _of_examples(privacy: Privacy, train: Train) -> dict[str, Any]:
    if train.max_grad_norm is not None:
        raise ConfigError(
            f"train.max_grad_norm = {train.max_grad_norm}: privacy.clip cuts each example's gradient; leave it out"
        )
    assert privacy.sample_rate is not None  # noqa: S101 - the options require it of this unit
    steps = train.local_steps or math.ceil(train.local_epochs / privacy.sample_rate - SLACK)
    return {"sample_rate": privacy.sample_rate, "steps": steps, "divisor": float(train.batch_size)}


def _of_clients(privacy: Privacy, rounds: Rounds, num_clients: int) -> dict[str, Any]:
    drawn = min(rounds.clients_per_round or num_clients, num_clients)
    if drawn < num_clients and rounds.sampling != "poisson":
        raise ConfigError(
            f"rounds.sampling = {rounds.sampling!r}: a cohort of fixed size is not what the accountant of "
            "privacy.unit = 'client' accounts for; set rounds.sampling = 'poisson', or draw all clients"
        )
    population, cohort = privacy.population or num_clients, privacy.cohort or drawn
    if cohort < drawn:
        raise ConfigError(f"privacy.cohort = {cohort}: expected at least the {drawn} clients drawn here a round")
    if privacy.delta >= 1 / population:
        raise ConfigError(
            f"privacy.delta = {privacy.delta}: expected less than 1 / {population}, one over the number of clients: "
            "at that, publishing one client's data whole would be allowed"
        )
    return {
        "sample_rate": cohort / population,
        "steps": 1,
        "divisor": float(drawn),
        "noise_scale": drawn / cohort,
    }
