"""Epsilon against closed forms and quadrature in NumPy: the accountants are never asked what is right."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr, ndtr

from fedpeft.errors import ConfigError
from fedpeft.privacy.accounting import Accountant, epsilon, noise_multiplier

ORDERS = [1 + tenth / 10 for tenth in range(1, 100)] + [*range(11, 64), 80, 96, 128, 192, 256, 384, 512]
noises = st.floats(math.log(0.3), math.log(20)).map(math.exp)
rates = st.one_of(st.just(1.0), st.floats(math.log(1e-4), math.log(0.9)).map(math.exp))
deltas = st.floats(-9, -3).map(lambda exponent: 10**exponent)


def renyi(order: float, noise: float, rate: float) -> float:
    """Of one step, by quadrature: log E[((1-q) + q exp((2x-1) / 2s^2))^a] / (a-1) over x ~ N(0, s^2)."""
    x = np.linspace(-12 * noise, order + 12 * noise, 20_001)
    ratio = (2 * x - 1) / (2 * noise**2)
    mixed = ratio if rate == 1 else np.logaddexp(math.log1p(-rate), math.log(rate) + ratio)
    logs = order * mixed - x**2 / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    top = float(logs.max())
    return float((top + math.log(np.trapezoid(np.exp(logs - top), x))) / (order - 1))


def least(delta_of: Callable[[float], float], delta: float, most: float = 1e5) -> float:
    """The epsilon at which a falling delta(epsilon) meets delta."""
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


def gaussian(noise: float, steps: int, delta: float) -> float:
    """Balle and Wang's analytic formula; steps of rate 1 are one step with the noise divided by their root."""
    mu = math.sqrt(steps) / noise

    def delta_of(eps: float) -> float:
        second = math.exp(eps + float(log_ndtr(-mu / 2 - eps / mu)))
        return float(ndtr(mu / 2 - eps / mu)) - second

    return least(delta_of, delta)


@settings(max_examples=50, deadline=None)
@given(noise=noises, rate=rates, steps=st.integers(1, 20_000), delta=deltas)
def test_rdp_is_the_best_order_of_the_integral(noise: float, rate: float, steps: int, delta: float) -> None:
    found = epsilon(noise_multiplier=noise, sample_rate=rate, steps=steps, delta=delta, accountant="rdp")

    each = (
        steps * renyi(order, noise, rate) + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        for order in ORDERS
    )
    assert found == pytest.approx(max(0.0, min(each)), rel=1e-3, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(noise=st.floats(1, 20), steps=st.integers(1, 50), delta=deltas)
def test_at_rate_one_both_hold_and_prv_is_tight(noise: float, steps: int, delta: float) -> None:
    exact = gaussian(noise, steps, delta)
    given = {"noise_multiplier": noise, "sample_rate": 1.0, "steps": steps, "delta": delta}

    assert exact <= epsilon(**given, accountant="rdp") + 1e-9
    assert exact <= epsilon(**given, accountant="prv") <= exact + 0.025


@settings(max_examples=50, deadline=None)
@given(noise=st.floats(0.5, 10), rate=st.floats(0.01, 0.9), delta=deltas)
def test_one_sampled_step_by_the_densities_in_both_directions(noise: float, rate: float, delta: float) -> None:
    x = np.linspace(-15 * noise, 1 + 15 * noise, 30_001)
    without = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    held = (1 - rate) * without + rate * np.exp(-((x - 1) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    exact = max(
        least(lambda eps, p=p, q=q: float(np.trapezoid(np.maximum(p - math.exp(eps) * q, 0), x)), delta, most=500)
        for p, q in ((held, without), (without, held))
    )

    found = epsilon(noise_multiplier=noise, sample_rate=rate, steps=1, delta=delta)

    assert exact - 1e-6 <= found <= exact + 0.025


def losses(noise: float, rate: float, step: float) -> tuple[Any, Any]:
    """Privacy losses on a grid, and the mass between each and the one before, of one sampled step."""
    grid = np.arange(math.log1p(-rate) - step, 20, step)
    inside = np.maximum((np.exp(grid) - (1 - rate)) / rate, 1e-300)
    x = noise**2 * np.log(inside) + 0.5
    below = (1 - rate) * ndtr(x / noise) + rate * ndtr((x - 1) / noise)
    return grid, np.diff(below, prepend=0.0, append=1.0)


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize(("noise", "steps"), [(1.0, 4), (2.0, 8), (0.8, 3)])
def test_few_sampled_steps_by_convolving_their_losses_on_a_grid(noise: float, steps: int, rate: float) -> None:
    """Rounded down the losses bound epsilon from below, rounded up from above."""
    step, delta = 1e-3, 1e-5
    grid, masses = losses(noise, rate, step)
    total = masses[:-1]
    for _ in range(steps - 1):
        total = np.fft.irfft(
            np.fft.rfft(total, size := 2 ** math.ceil(math.log2(len(total) + len(grid))))
            * np.fft.rfft(masses[:-1], size),
            size,
        )[: len(total) + len(grid) - 1]
    upper = steps * grid[0] + step * np.arange(len(total))

    def at(values: Any) -> float:
        return least(
            lambda eps: float(np.sum(np.where(values > eps, total * -np.expm1(np.minimum(eps - values, 0)), 0))),
            delta,
            most=60,
        )

    found = epsilon(noise_multiplier=noise, sample_rate=rate, steps=steps, delta=delta)

    assert at(upper - steps * step) <= found <= at(upper) + 0.025


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(("target", "rate", "steps"), [(0.5, 0.01, 300), (3.0, 0.1, 100), (8.0, 1.0, 20)])
def test_the_noise_for_a_target_keeps_to_it_and_is_hardly_more_than_needed(
    accountant: Accountant, target: float, rate: float, steps: int
) -> None:
    given: dict[str, Any] = {"sample_rate": rate, "steps": steps, "delta": 1e-5, "accountant": accountant}

    noise = noise_multiplier(epsilon=target, **given)

    assert epsilon(noise_multiplier=noise, **given) <= target
    assert epsilon(noise_multiplier=noise / 1.0015, **given) > target


def test_more_steps_or_a_higher_rate_cost_more_and_none_cost_nothing() -> None:
    given = {"noise_multiplier": 1.1, "delta": 1e-5}
    costs = [
        epsilon(**given, sample_rate=rate, steps=steps) for rate, steps in ((0.01, 100), (0.01, 1000), (0.1, 1000))
    ]
    assert costs == sorted(costs)
    assert epsilon(**given, sample_rate=0.1, steps=0) == 0.0


GOOD: dict[str, Any] = {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 10, "delta": 1e-5}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier: expected a finite number above 0, got 0.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier: .* got nan"),
        ({"sample_rate": 1.5}, r"sample_rate: expected a number in \(0, 1\], got 1.5"),
        ({"steps": -1}, "steps: expected at least 0, got -1"),
        ({"delta": 0.0}, r"delta: expected a number in \(0, 1\), got 0.0"),
        ({"accountant": "gdp"}, "accountant: gdp is an approximation .* use prv or rdp"),
        ({"accountant": "moments"}, "accountant: expected one of prv, rdp, got 'moments'"),
        ({"noise_multiplier": 0.1, "sample_rate": 1.0, "steps": 10_000}, "too little for accountant prv"),
    ],
)
def test_what_is_out_of_bounds_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        epsilon(**{**GOOD, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epsilon": 0.0}, "epsilon: expected a finite number above 0.02 with accountant prv, got 0.0"),
        ({"epsilon": 1e-12, "accountant": "rdp"}, "needs a noise multiplier above 1e[+]06"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"accountant": "gdp"}, "use prv or rdp"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused(changed: dict[str, Any], message: str) -> None:
    settings = {"epsilon": 1.0, "sample_rate": 0.1, "steps": 10, "delta": 1e-5, "accountant": "prv"}
    with pytest.raises(ConfigError, match=message):
        noise_multiplier(**{**settings, **changed})
