"""Who is drawn."""

from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from fedpeft import seeds
from fedpeft.privacy.randomness import Secure
from fedpeft.rounds.sampling import draw_cohort, draw_spares, first_of_permutation


@given(
    num_clients=st.integers(1, 60),
    per_round=st.integers(1, 60),
    seed=st.integers(0, 2**63 - 1),
    round_number=st.integers(1, 10_000),
)
def test_a_cohort_is_sorted_without_repeats_and_the_same_again(
    num_clients: int, per_round: int, seed: int, round_number: int
) -> None:
    cohort = draw_cohort(num_clients, per_round, seed=seed, round_number=round_number)
    assert list(cohort) == sorted(set(cohort))
    assert len(cohort) == min(per_round, num_clients)
    assert set(cohort) <= set(range(num_clients))
    assert cohort == draw_cohort(num_clients, per_round, seed=seed, round_number=round_number)


def test_all_take_part_when_no_number_is_given() -> None:
    assert draw_cohort(4, None, seed=1, round_number=1) == (0, 1, 2, 3)


def test_every_pair_is_as_likely_as_any_other() -> None:
    num_rounds, pairs = 6000, list(combinations(range(6), 2))
    drawn = Counter(draw_cohort(6, 2, seed=5, round_number=number) for number in range(1, num_rounds + 1))
    expected = num_rounds / len(pairs)
    chi_square = sum((drawn[pair] - expected) ** 2 / expected for pair in pairs)
    assert set(drawn) <= set(pairs)
    assert chi_square < 36.1, "chi-square of 14 degrees of freedom, p = 0.001"


def test_another_seed_draws_others() -> None:
    cohorts = {tuple(draw_cohort(50, 5, seed=seed, round_number=1)) for seed in range(20)}
    assert len(cohorts) == 20


@pytest.mark.parametrize("given", [True, False], ids=["the mechanism's own", "seed and round"])
def test_a_poisson_cohort_is_of_independent_draws_at_the_rate(given: bool) -> None:
    """What the accountant amplifies by: sizes are binomial, and each pair is drawn as often as its rate squared."""
    num_rounds, clients, rate = 100_000 if given else 20_000, 8, 3 / 8
    randomness = Secure() if given else None
    cohorts = [
        draw_cohort(clients, 3, seed=4, round_number=number, sampling="poisson", randomness=randomness)
        for number in range(1, num_rounds + 1)
    ]
    sizes = Counter(map(len, cohorts))
    expected = num_rounds * binom.pmf(range(clients + 1), clients, rate)
    assert chisquare([sizes[size] for size in range(clients + 1)], expected).pvalue > 1e-4
    pairs = Counter(pair for cohort in cohorts for pair in combinations(cohort, 2))
    deviation = (num_rounds * rate**2 * (1 - rate**2)) ** 0.5
    assert len(pairs) == clients * (clients - 1) / 2
    assert all(abs(count - num_rounds * rate**2) < 5 * deviation for count in pairs.values())


@given(entries=st.integers(1, 3000), most=st.integers(0, 3200), seed=st.integers(0, 2**63 - 1))
def test_the_first_of_a_permutation_are_torchs(entries: int, most: int, seed: int) -> None:
    first = first_of_permutation(entries, most, torch.Generator().manual_seed(seed))
    assert first == torch.randperm(entries, generator=torch.Generator().manual_seed(seed))[:most].tolist()


def test_the_first_of_a_permutation_of_a_million_are_torchs() -> None:
    first = first_of_permutation(10**6, 2000, torch.Generator().manual_seed(7))
    assert first == torch.randperm(10**6, generator=torch.Generator().manual_seed(7))[:2000].tolist()


def test_so_many_that_torch_draws_otherwise_are_refused() -> None:
    with pytest.raises(ValueError, match=f"num_entries = {2**31}: expected less than"):
        first_of_permutation(2**31, 1, torch.Generator())


def test_spares_come_after_the_cohort_in_one_permutation() -> None:
    order = torch.randperm(500, generator=seeds.generator(9, "cohort", 4)).tolist()
    assert draw_cohort(500, 20, seed=9, round_number=4) == tuple(sorted(order[:20]))
    assert draw_spares(500, 20, 7, seed=9, round_number=4) == tuple(sorted(order[20:27]))
    assert draw_spares(500, 20, 999, seed=9, round_number=4) == tuple(sorted(order[20:]))


@pytest.mark.parametrize("clients", [10, 65_536, 65_537, 300_001])
def test_a_poisson_cohort_is_of_one_row_of_chances(clients: int) -> None:
    """Drawn in pieces, the chances are those that were drawn at once."""
    drawn = draw_cohort(clients, clients // 5, seed=1, round_number=2, sampling="poisson")
    chances = torch.rand(clients, generator=seeds.generator(1, "cohort", 2), dtype=torch.float64)
    assert drawn == tuple((chances < clients // 5 / clients).nonzero().flatten().tolist())
