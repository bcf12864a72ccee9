"""From how often an attacker is right to an epsilon that the mechanism has at least.

Two attacks. Many releases: tell one with a canary from one without; the rates of right and of false alarms, each known
to a confidence (Clopper, Pearson 1934), bound the two Gaussians behind them (Dong, Roth, Su 2019, arXiv 1905.02383),
and these have an epsilon at each delta (Balle, Wang 2018, arXiv 1805.06530). One run: each of many canaries takes part
by a fair coin, and the attacker says of some what the coin was (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846,
theorem 5.2: how often it can be right by a mechanism of that epsilon).
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import beta, binom, norm

__all__ = ["one_run_bound", "releases_bound"]

_LARGEST = 50.0
_HALVINGS = 60


def releases_bound(*, hits: int, with_canary: int, alarms: int, without: int, delta: float, confidence: float) -> float:
    """Return epsilon from right alarms among releases with a canary and false ones among others; 0 if nothing shows."""
    mistake = (1 - confidence) / 2
    right = float(beta.ppf(mistake, hits, with_canary - hits + 1)) if hits else 0.0
    wrong = float(beta.ppf(1 - mistake, alarms + 1, without - alarms)) if alarms < without else 1.0
    if right <= wrong:
        return 0.0
    mu = float(norm.ppf(right) - norm.ppf(wrong))
    return _largest(lambda eps: norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) > delta)


def one_run_bound(*, canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Return epsilon from ``correct`` of the guesses made on one run's canaries; 0 if nothing shows."""
    return _largest(lambda eps: _chance(canaries, guesses, correct, eps, delta) <= 1 - confidence)


def _chance(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return the probability, at most, of so many right guesses under (epsilon, delta)."""
    each = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, each))
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, each))
    slope = float((below / np.arange(1, correct + 1)).max()) if correct else 0.0
    return min(1.0, tail + 2 * canaries * delta * slope)


def _largest(refuted: Callable[[float], bool]) -> float:
    """Return the largest epsilon that is refuted, by bisection: whatever is below one that is, is too."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, _LARGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
