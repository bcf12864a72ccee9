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
from functools import lru_cache
from typing import Literal, final, get_args

import numpy as np

from fedpeft.errors import ConfigError

__all__ = ["Accountant", "Releases", "composed", "epsilon", "noise_multiplier"]

Accountant = Literal["prv", "rdp"]
_History = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sample rate, steps), as Opacus has it."""

ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 64), 80, 96, 128, 192, 256, 384, 512)
"""Of the Renyi divergences that RDP takes the best of: Opacus's, and larger ones for strong privacy."""
RESOLUTION = 0.01
"""Of PRV's epsilon, which is rounded up by it."""
MOST_POINTS = 2**24
"""Of PRV's grid: more would take gigabytes to say that there is no privacy."""
MOST_NOISE = 1e6
CLOSENESS = 0.001
"""By how much of it a noise multiplier may exceed the least that will do."""


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
    history = tuple((part.noise_multiplier, part.sample_rate, part.steps) for part in parts if part.steps)
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
    """Close in on the multiplier where epsilon meets the target, and take one just above it that fits."""
    from scipy.optimize import brentq  # most of a second, which a run without privacy need not wait for

    def spent(noise: float) -> float:
        return epsilon(noise_multiplier=noise, sample_rate=sample_rate, steps=steps, delta=delta, accountant=accountant)

    def excess(log_noise: float) -> float:
        found = spent(math.exp(log_noise))
        return math.log(min(max(found, 1e-12), 1e12) / target)

    enough = start
    while spent(enough) > target:
        enough *= 2
        if enough > MOST_NOISE:
            raise ConfigError(f"epsilon: {target} at delta {delta} needs a noise multiplier above {MOST_NOISE:.0e}")
    little = enough / 1.25  # PRV's cost grows as noise shrinks
    while spent(little) <= target:
        enough, little = little, little / 1.25
    found = math.exp(brentq(excess, math.log(little), math.log(enough), xtol=CLOSENESS / 4))
    while spent(found) > target:
        found *= 1 + CLOSENESS / 4
    return found


def _rdp(history: _History, delta: float) -> float:
    """Return the least epsilon over the orders.

    At order a it is (K(a) + log(1 / delta) + (a - 1) log(a - 1) - a log a) / (a - 1), where K is the logarithm of a
    moment. All terms above the line are convex in a, so that epsilon falls until the best order and rises from there:
    halving finds it, and most orders between whole ones, which take nearly all of the time, are never looked at.
    """
    first, last = 0, len(ORDERS) - 1
    while first < last:
        middle = (first + last) // 2
        rises = _at_order(ORDERS[middle], history, delta) <= _at_order(ORDERS[middle + 1], history, delta)
        first, last = (first, middle) if rises else (middle + 1, last)
    return max(0.0, _at_order(ORDERS[first], history, delta))


def _at_order(order: float, history: _History, delta: float) -> float:
    """Return the epsilon that one order gives; infinite where it gives none."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    spent = sum(steps * _divergence(order, noise, rate) for noise, rate, steps in history)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # one order is the smallest and the largest
        found = float(get_privacy_spent(orders=[order], rdp=[spent], delta=delta)[0])
    return math.inf if math.isnan(found) else found


@lru_cache(maxsize=2**15)
def _divergence(order: float, noise: float, rate: float) -> float:
    """Return the Renyi divergence of one step; every round asks for the same ones again."""
    from opacus.accountants.analysis.rdp import compute_rdp  # seconds, which a run without privacy need not wait for

    with np.errstate(all="ignore"):
        return float(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=[order])[0])


@lru_cache(maxsize=2**10)
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
