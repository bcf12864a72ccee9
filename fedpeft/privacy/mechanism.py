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

Of known cohorts (a fixed number of clients, drawn without looking at data): the same with q = 1, for neighbours that
differ by one client's updates being left out. A round costs those whom it asks and no other, so the epsilon of the
federation is the largest of any client's, of the rounds that asked it; no drawing makes it smaller.

With an adaptive clip (Andrew et al. 2021, arXiv 1905.03871) a second number is released each round: how many updates
were within C, each counted as +1/2 or -1/2, with noise of standard deviation b. One client moves it by at most 1/2, so
the pair is one Gaussian release of multiplier z where the updates' own multiplier is (z^-2 - (2b)^-2)^(-1/2).

Distributed (all clients are asked, q = 1): each cuts its own update to C and adds noise of standard deviation
z C / sqrt(m), m = rounds.min_clients. The sum of any k >= m of them has z C sqrt(k / m) >= z C; of fewer nothing is
released. It holds for the sum, so against whoever sees no single update, and counts on m clients that do add noise.
"""

import json
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
_COHORT_SHARE, _MORE_NOISE = 1 / 20, 1.01
"""Of an adaptive clip's count: its noise over the cohort, and by how much at most it makes the updates' noise grow."""
_TRUST = {
    "example": "none in the server: noise is added on the client in each step",
    "central": "the server, which sees each update: what holds is of the adapter it publishes, not of its run folder",
    "distributed": "whoever sees single updates, whose own noise is a share: what holds is of their sum",
}
_COMPOSITION = {
    "example": "the largest of any client's, whose examples are disjoint",
    "secret": "over all rounds",
    "known": "the largest of any client's, over the rounds that asked it",
}


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
    bit_noise: float | None = None
    """b, of an adaptive clip."""
    shares: int | None = None
    """m, of distributed noise."""
    virtual: bool = False
    """Whether clients are made of examples that they share."""

    @property
    def std(self) -> float:
        """Standard deviation of the noise on a sum, at the first clip."""
        return self.std_at(self.privacy.clip)

    def std_at(self, clip: float) -> float:
        """Return the standard deviation of the noise on a sum of what was cut to this norm."""
        return self.update_noise * clip * self.noise_scale

    @property
    def update_noise(self) -> float:
        """The multiplier of the noise on updates: z, or more where the count beside them is charged."""
        rest = 0.0 if self.bit_noise is None else (2 * self.bit_noise) ** -2
        return float((self.noise_multiplier**-2 - rest) ** -0.5)

    @property
    def share_std(self) -> float:
        """Standard deviation of the noise that each client adds, where it is distributed."""
        return self.std / math.sqrt(self.shares or 1)

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

    @property
    def order(self) -> tuple[str, ...]:
        """What is done to one client's change on its way, in this order; compress stands for the codec, up.

        Before the codec, noise makes all that comes after free; after it, what is cut is what was decoded.
        """
        if self.privacy.unit == "example" or self.privacy.placement == "distributed":
            return ("clip", "noise", "compress")
        return ("compress", "clip", "noise")

    @property
    def claim(self) -> str:
        """What messages say of it, canonical JSON: the same on both sides, and of nobody's data."""
        said = {
            "unit": self.privacy.unit,
            "clip": self.privacy.clip,
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
            "order": self.order,
        }
        return json.dumps(said, sort_keys=True, separators=(",", ":"))

    def statement(self, num_rounds: int) -> dict[str, Any]:
        """Return what may be claimed after so many charged rounds, in words and numbers."""
        privacy, example, known = self.privacy, self.privacy.unit == "example", self.privacy.cohorts == "known"
        said = {
            "unit": privacy.unit,
            "epsilon": self.spent(num_rounds),
            "delta": privacy.delta,
            "budget": self.budget,
            "charged_rounds": num_rounds,
            "adjacency": "one client's updates left out" if known else f"one {privacy.unit} more or less",
            "sampling": _sampling(self.sample_rate, known),
            "accountant": privacy.accountant,
            "noise_multiplier": self.noise_multiplier,
            "clip": privacy.clip,
            "order": ", ".join(self.order),
            "trust": _TRUST["example" if example else privacy.placement],
            "composition": _COMPOSITION["example" if example else privacy.cohorts],
            "randomness": "secure" if privacy.noise == "secure" else "REPRODUCIBLE: for research, not private in use",
        }
        if self.bit_noise is not None:
            said["adaptive_clip"] = f"its count has noise {self.bit_noise:.4g}, updates {self.update_noise:.4g}"
        if self.shares is not None:
            said["shares"] = f"each client adds 1 / sqrt({self.shares}) of the noise; fewer replies release nothing"
        if self.virtual:
            said["clients"] = "VIRTUAL: they draw from shared examples; nothing is claimed of whoever gave an example"
        if privacy.population is not None:
            valid = f"simulated at {self.divisor:g} clients a round, valid at {privacy.cohort} of {privacy.population}"
            said["valid_for"] = valid
        return said


def mechanism(privacy: Privacy, *, train: Train, rounds: Rounds, num_clients: int, virtual: bool = False) -> Mechanism:
    """Return the mechanism that an experiment runs; of virtual clients it says that they are.

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
    if privacy.adaptive is not None:
        made["bit_noise"] = _bit_noise(privacy, noise, privacy.cohort or float(made["divisor"]))
    found = Mechanism(privacy=privacy, noise_multiplier=noise, planned_rounds=planned, virtual=virtual, **made)
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
    fixed = drawn < num_clients and rounds.sampling != "poisson"
    if fixed != (privacy.cohorts == "known"):
        raise ConfigError(
            f"rounds.sampling = {rounds.sampling!r}, privacy.cohorts = {privacy.cohorts!r}: a cohort of fixed size is "
            "not what the accountant of secret ones accounts for, and known ones are of fixed size, below all; set "
            "rounds.sampling = 'poisson', or draw all clients, or set privacy.cohorts = 'known' and sampling 'fixed'"
        )
    population, cohort = privacy.population or num_clients, privacy.cohort or drawn
    if cohort < drawn:
        raise ConfigError(f"privacy.cohort = {cohort}: expected at least the {drawn} clients drawn here a round")
    if privacy.delta >= 1 / population:
        raise ConfigError(
            f"privacy.delta = {privacy.delta}: expected less than 1 / {population}, one over the number of clients: "
            "at that, publishing one client's data whole would be allowed"
        )
    rate = 1.0 if fixed else cohort / population
    made = {"sample_rate": rate, "steps": 1, "divisor": float(drawn), "noise_scale": drawn / cohort}
    if privacy.placement == "central":
        return made
    if drawn < num_clients:
        raise ConfigError(
            f"rounds.clients_per_round = {drawn}: with privacy.placement = 'distributed' all clients are asked, since "
            "a cohort that is drawn may fall below those whose shares of noise are enough; leave it out"
        )
    return {**made, "shares": rounds.min_clients}


def _bit_noise(privacy: Privacy, noise: float, cohort: float) -> float:
    assert privacy.adaptive is not None  # noqa: S101 - asked for only then
    least = noise / 2
    slight = least / math.sqrt(1 - _MORE_NOISE**-2)
    found = privacy.adaptive.bit_noise or max(slight, cohort * _COHORT_SHARE)
    if found <= least:
        raise ConfigError(
            f"privacy.adaptive.bit_noise = {found}: the count alone would cost more than all was planned to; expected "
            f"more than half the noise multiplier, {least:.4g}; leave it out to have it follow"
        )
    return found


def _sampling(rate: float, known: bool) -> str:
    if known:
        return "cohorts of fixed size, counted as known: nothing amplified"
    return "all take part" if rate == 1 else f"Poisson, rate {rate:g}"
