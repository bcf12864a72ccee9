"""The [privacy] table: whose data is protected, how much may leak, and how it is accounted."""

from typing import Literal, Self, final

from pydantic import Field, model_validator

from fedpeft.config.base import Frozen

__all__ = ["AdaptiveClip", "Privacy"]


@final
class AdaptiveClip(Frozen):
    """The clip follows a quantile of the updates' norms (Andrew et al. 2021, arXiv 1905.03871)."""

    quantile: float = Field(default=0.5, gt=0, lt=1)
    """Share of the updates that the clip is to leave whole."""
    learning_rate: float = Field(default=0.2, gt=0)
    """How fast it follows: the clip is multiplied by exp(-learning_rate (share within it - quantile))."""
    bit_noise: float | None = Field(default=None, gt=0)
    """Standard deviation of the noise on the number of updates within the clip; it is charged: the updates carry so
    much more that both together cost what was planned. Unset: a twentieth of the expected cohort, or what makes the
    updates' noise one percent larger, whichever is more."""


@final
class Privacy(Frozen):
    """Differential privacy. Without this table nothing is claimed."""

    unit: Literal["example", "client"]
    """Whom it protects: example, one training example of one client (noise on the client in each step, no trust in the
    server); client, all that one client holds (noise on the server once a round, which must be trusted)."""
    delta: float = Field(gt=0, lt=1)
    """Probability with which epsilon may not hold; far below one over the number of those protected."""
    clip: float = Field(gt=0)
    """L2 norm that one example's gradient, or one client's update, is cut to, over all its tensors together."""
    epsilon: float | None = Field(default=None, gt=0)
    """The budget. The noise follows from it; a round that would exceed it is not begun."""
    noise_multiplier: float | None = Field(default=None, gt=0)
    """Standard deviation of the noise in units of clip, instead of one that follows from epsilon."""
    sample_rate: float | None = Field(default=None, gt=0, le=1)
    """Of unit example: probability with which an example is in a step's batch, each on its own; the same everywhere, so
    that it tells nothing of how much a client holds. A local epoch is 1 / sample_rate steps."""
    clipping: Literal["flat", "per_layer"] = "flat"
    """Of unit example: cut the whole gradient to clip, or each of its L tensors to clip / sqrt(L)."""
    accountant: Literal["prv", "rdp"] = "prv"
    """prv is tighter, rdp is a plain bound."""
    noise: Literal["secure", "reproducible"] = "secure"
    """secure: seeded by the operating system, made to withstand attacks on floating point. reproducible: from the
    experiment's seed, so that who knows it can take the noise away: for research alone, and results say so."""
    spare_rounds: int = Field(default=0, ge=0)
    """Rounds beyond rounds.num_rounds that the noise allows for, since a round that is repeated is charged again."""
    population: int | None = Field(default=None, ge=2)
    """Of unit client: carry the noise of a federation of so many clients. The guarantee is that federation's."""
    cohort: int | None = Field(default=None, ge=1)
    """Of unit client: clients expected a round in that larger federation."""
    cohorts: Literal["secret", "known"] = "secret"
    """Of unit client: secret, all clients, or each drawn on its own (rounds.sampling = "poisson"), which costs less as
    nobody knows who was; known, a cohort of fixed size that anybody may know: each client pays in full for the rounds
    that draw it, and the noise allows for one that every round draws."""
    adaptive: AdaptiveClip | None = None
    """Of unit client: let clip, the first one, follow the updates' norms."""
    placement: Literal["central", "distributed"] = "central"
    """Of unit client: central, the server cuts and adds the noise; distributed, each client cuts and adds its share,
    as large as rounds.min_clients of them must have it, and of fewer nothing is released."""

    @property
    def by_client(self) -> bool:
        """Whether what a round costs is of the clients that it asks, and not of all."""
        return self.unit == "example" or self.cohorts == "known"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epsilon is None and self.noise_multiplier is None:
            raise ValueError("give epsilon, the budget, or noise_multiplier; or both, and the budget is checked")
        if (self.sample_rate is None) == (self.unit == "example"):
            raise ValueError("sample_rate belongs to unit = 'example': give both or neither")
        if self.unit == "client" and self.clipping != "flat":
            raise ValueError("clipping = 'per_layer' belongs to unit = 'example'; a client's update is cut as a whole")
        if self.unit == "example" and (self.adaptive or self.placement != "central" or self.cohorts != "secret"):
            raise ValueError("adaptive, placement and cohorts belong to unit = 'client'")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.placement == "distributed" and (self.adaptive is not None or self.population is not None):
            raise ValueError("placement = 'distributed' goes with neither adaptive nor population: no one counts norms")
        if self.cohorts == "known" and (self.placement == "distributed" or self.population is not None):
            raise ValueError("cohorts = 'known' goes with neither placement = 'distributed' nor population")
        if (self.population is None) != (self.cohort is None) or (self.population and self.unit == "example"):
            raise ValueError("population and cohort belong together, and to unit = 'client'")
        if self.population is not None and self.cohort is not None and self.cohort > self.population:
            raise ValueError(f"cohort = {self.cohort}: expected at most population = {self.population}")
        return self
