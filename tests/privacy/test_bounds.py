"""What an attacker's successes prove, against closed forms and the theorem added up by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedpeft.privacy.bounds import one_run_bound, releases_bound


@pytest.mark.parametrize(("noise", "exact"), [(1.0, 4.377180), (0.5, 10.0), (4.0, 0.93)])
def test_so_many_releases_that_chance_is_nothing_give_the_gaussians_own_epsilon(noise: float, exact: float) -> None:
    many = 10**12
    hits = round(many * float(norm.cdf(0.5 / noise)))
    counts = {"with_canary": many, "without": many, "alarms": many - hits, "hits": hits}
    found = releases_bound(**counts, delta=1e-5, confidence=0.99)
    assert found == pytest.approx(exact, rel=2e-3 if noise == 1.0 else 2e-2)


def test_few_releases_prove_less_and_no_difference_proves_nothing() -> None:
    few, more = (
        releases_bound(hits=69 * n, with_canary=100 * n, alarms=31 * n, without=100 * n, delta=1e-5, confidence=0.99)
        for n in (1, 100)
    )
    assert 0 < few < more < 4.37718
    assert releases_bound(hits=50, with_canary=100, alarms=50, without=100, delta=1e-5, confidence=0.9) == 0.0
    assert releases_bound(hits=0, with_canary=100, alarms=100, without=100, delta=1e-5, confidence=0.9) == 0.0


@pytest.mark.parametrize(("guesses", "confidence"), [(200, 0.95), (40, 0.99)])
def test_all_right_without_delta_is_the_closed_form(guesses: int, confidence: float) -> None:
    each = (1 - confidence) ** (1 / guesses)
    found = one_run_bound(canaries=1000, guesses=guesses, correct=guesses, delta=0.0, confidence=confidence)
    assert found == pytest.approx(math.log(each / (1 - each)), rel=1e-9)
    if guesses == 200:
        assert found == pytest.approx(4.1937, abs=1e-3)


def chance(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 of arXiv 2305.08846 in sums of exact binomials."""
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(guesses, k) * right**k * (1 - right) ** (guesses - k) for k in range(guesses + 1)]
    steepest = max((sum(mass[correct - i : correct]) / i for i in range(1, correct + 1)), default=0.0)
    return min(1.0, sum(mass[correct:]) + 2 * canaries * delta * steepest)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 60), st.sampled_from([0.0, 1e-6, 1e-4]), st.sampled_from([0.9, 0.99]))
def test_the_bound_is_where_the_theorem_stops_to_refute(
    guesses: int, correct: int, delta: float, confidence: float
) -> None:
    correct = min(correct, guesses)
    found = one_run_bound(canaries=100, guesses=guesses, correct=correct, delta=delta, confidence=confidence)
    if found == 0.0:
        assert chance(100, guesses, correct, 0.0, delta) > (1 - confidence) * (1 - 1e-9)
        return
    below, above = (chance(100, guesses, correct, found + step, delta) for step in (-1e-6, 1e-6))
    assert below <= (1 - confidence) * (1 + 1e-9)
    assert above >= (1 - confidence) * (1 - 1e-9)


def test_a_mechanism_that_keeps_its_word_is_seldom_refuted() -> None:
    """Randomised response of epsilon 1 on each canary: the bound exceeds 1 in no more than a few of 300 runs."""
    draw, right = np.random.default_rng(0), math.e / (1 + math.e)
    found = [
        one_run_bound(canaries=200, guesses=200, correct=int(draw.binomial(200, right)), delta=0.0, confidence=0.95)
        for _ in range(300)
    ]
    assert np.mean([bound > 1.0 for bound in found]) < 0.09
    assert np.mean(found) > 0.6
