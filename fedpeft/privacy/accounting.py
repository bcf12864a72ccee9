"""What training with privacy costs: (epsilon, delta) of a Gaussian mechanism on random batches, step upon step.

Each step draws every example with probability ``sample_rate``, independently (Poisson), clips, sums, and adds noise of
standard deviation noise_multiplier x clip. Neighbours differ by one example more or less. Two accountants, both of them
Opacus's: RDP (Mironov, Talwar, Zhang 2019, arXiv 1908.10530, with the conversion of Balle et al. 2020, arXiv
1905.09982), a bound; PRV (Gopi, Lee, Wutschitz 2021, arXiv 2106.02848), numerical and tighter, with its own errors
added. GDP's epsilon is that of a limit theorem and may be too small, so it is refused.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np

from fedpeft.errors import ConfigError

__all__ = ["Accountant", "Releases", "composed", "epsilon", "noise_multiplier"]

Accountant = Literal["prv", "rdp"]
_History = Sequence[tuple[float, float, int]]
"""(noise multiplier, sample rate, steps), as Opacus has it."""

ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 64), 80, 96, 128, 192, 256, 384, 512)
"""Of the Renyi divergences that RDP takes the best of: Opacus's, and larger ones for strong privacy."""
RESOLUTION = 0.01
"""Of PRV's epsilon, which is rounded up by it."""
MOST_POINTS = 2**24
"""Of PRV's grid: more would take gigabytes to say that there is no privacy."""
MOST_NOISE = 1e6
CLOSENESS = 1.001
"""By how much a noise multiplier may exceed the least that will do."""


@final
@dataclass(frozen=True, kw_only=True)
class Releases:
    """So many steps of one Gaussian mechanism on random batches."""

    noise_multiplier: float
    sample_rate: float
    steps: int


def epsilon(
    *, noise_multiplier: float, sample_rate: float, steps: int, delta: float, accountant: Accountant = "prv"
) -> float:
    """Return an epsilon that holds at this delta; 0 for no steps, infinite where no finite one was found.

    Raises:
        ConfigError: a number out of its bounds, an accountant that is not trusted, or so little noise that PRV cannot
            resolve it.
    """
    one = Releases(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)
    return composed([one], delta=delta, accountant=accountant)


def composed(parts: Sequence[Releases], *, delta: float, accountant: Accountant) -> float:
    """Return an epsilon that holds at this delta for all of these releases of the same records together.

    RDP's holds as a limit (a filter) even where a later part was chosen after seeing what an earlier one gave
    (Lecuyer 2021, arXiv 2103.01379); PRV's is of parts that were fixed beforehand.

    Raises:
        ConfigError: as for epsilon.
    """
    _require_known(accountant)
    for part in parts:
        _require(sample_rate=part.sample_rate, steps=part.steps, delta=delta)
        if not (math.isfinite(part.noise_multiplier) and part.noise_multiplier > 0):
            raise ConfigError(f"noise_multiplier: expected a finite number above 0, got {part.noise_multiplier}")
    history = [(part.noise_multiplier, part.sample_rate, part.steps) for part in parts if part.steps]
    if not history:
        return 0.0
    return _rdp(history, delta) if accountant == "rdp" else _prv(history, delta)


def noise_multiplier(
    *, epsilon: float, sample_rate: float, steps: int, delta: float, accountant: Accountant = "prv"
) -> float:
    """Return a noise multiplier whose epsilon is at most this one, and within 0.1 % of the least such.

    Raises:
        ConfigError: a number out of its bounds, an accountant that is not trusted, or an epsilon that it cannot reach.
    """
    _require_known(accountant)
    _require(sample_rate=sample_rate, steps=steps, delta=delta)
    least = 2 * RESOLUTION if accountant == "prv" else 0.0
    if not (math.isfinite(epsilon) and epsilon > least):
        raise ConfigError(
            f"epsilon: expected a finite number above {least} with accountant {accountant}, got {epsilon}"
        )
    if steps == 0:
        raise ConfigError("steps: expected at least 1 to choose noise for, got 0")
    by_rdp = _search(epsilon, sample_rate, steps, delta, "rdp", start=1.0)
    return by_rdp if accountant == "rdp" else _search(epsilon, sample_rate, steps, delta, "prv", start=by_rdp)


def _search(target: float, sample_rate: float, steps: int, delta: float, accountant: Accountant, start: float) -> float:
    """Bisect between a multiplier that fails and one that does, in proportion; PRV's cost grows as noise shrinks."""
    spend = _rdp if accountant == "rdp" else _prv

    def fits(noise: float) -> bool:
        return spend([(noise, sample_rate, steps)], delta) <= target

    enough = start
    while not fits(enough):
        enough *= 2
        if enough > MOST_NOISE:
            raise ConfigError(f"epsilon: {target} at delta {delta} needs a noise multiplier above {MOST_NOISE:.0e}")
    little = enough / 1.25
    while fits(little):
        enough, little = little, little / 1.25
    while enough / little > CLOSENESS:
        middle = math.sqrt(enough * little)
        enough, little = (middle, little) if fits(middle) else (enough, middle)
    return enough


def _rdp(history: _History, delta: float) -> float:
    from opacus.accountants import RDPAccountant  # seconds, which a run without privacy need not wait for

    accountant = RDPAccountant()
    accountant.history = [*history]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # the best order is the first or last: the bound holds, is loose
        found = float(accountant.get_epsilon(delta=delta, alphas=list(ORDERS)))
    return max(0.0, found)


def _prv(history: _History, delta: float) -> float:
    reach, steps = 2 * (_rdp(history, delta / 4000) + 3), sum(steps for _, _, steps in history)
    points = reach * math.sqrt(steps * math.log(12_000 / delta) / 2) / RESOLUTION
    if points > MOST_POINTS:
        noise = ", ".join(f"{noise:.4g} over {steps} steps at sample_rate {rate}" for noise, rate, steps in history)
        raise ConfigError(
            f"noise_multiplier: {noise} is too little for "
            f"accountant prv, whose grid would have {points:.1e} points, allowed are {MOST_POINTS:.1e}; add noise, "
            "or use accountant rdp"
        )
    from opacus.accountants import PRVAccountant  # seconds, which a run without privacy need not wait for

    accountant = PRVAccountant()
    accountant.history = [*history]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        found = float(accountant.get_epsilon(delta=delta, eps_error=RESOLUTION, delta_error=delta / 1000))
    return math.inf if math.isnan(found) else max(0.0, found)


def _require_known(accountant: str) -> None:
    if accountant == "gdp":
        raise ConfigError(
            "accountant: gdp is an approximation that can state a smaller epsilon than holds; use prv or rdp"
        )
    if accountant not in get_args(Accountant):
        raise ConfigError(f"accountant: expected one of {', '.join(get_args(Accountant))}, got {accountant!r}")


def _require(*, sample_rate: float, steps: int, delta: float) -> None:
    if not 0 < sample_rate <= 1:
        raise ConfigError(f"sample_rate: expected a number in (0, 1], got {sample_rate}")
    if steps < 0:
        raise ConfigError(f"steps: expected at least 0, got {steps}")
    if not 0 < delta < 1:
        raise ConfigError(f"delta: expected a number in (0, 1), got {delta}")
