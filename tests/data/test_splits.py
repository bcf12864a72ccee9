import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.data.splits import held_out, permutation, subsample
from fedpeft.errors import DataError


def rows(count: int) -> Dataset:
    return Dataset.from_dict({"row": list(range(count))})


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 60), st.floats(0.2, 0.8), st.integers(0, 2**62))
def test_train_and_test_are_a_partition_of_the_rows(count: int, fraction: float, seed: int) -> None:
    train, test = held_out(rows(count), fraction=fraction, seed=seed)
    assert len(test) == round(fraction * count)
    assert sorted([*train["row"], *test["row"]]) == list(range(count))


def test_the_seed_decides_what_is_held_out() -> None:
    first, again, other = (list(held_out(rows(100), fraction=0.2, seed=seed)[1]["row"]) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.1), (2, 0.9), (0, 0.5)])
def test_a_split_with_an_empty_side_is_refused(count: int, fraction: float) -> None:
    with pytest.raises(DataError, match=f"test_fraction = {fraction}.*at least one in each"):
        held_out(rows(count), fraction=fraction, seed=0)


def test_a_subsample_is_drawn_without_replacement() -> None:
    drawn = list(subsample(rows(100), 30, "train", seed=5)["row"])
    assert len(set(drawn)) == 30
    assert drawn == list(subsample(rows(100), 30, "train", seed=5)["row"])
    assert drawn != list(subsample(rows(100), 30, "test", seed=5)["row"])


@pytest.mark.parametrize("limit", [None, 10, 11])
def test_a_limit_that_does_not_bind_changes_nothing(limit: int | None) -> None:
    assert list(subsample(rows(10), limit, "train", seed=5)["row"]) == list(range(10))


def test_a_permutation_has_every_number_once() -> None:
    assert sorted(permutation(50, "x", seed=1)) == list(range(50))
    assert permutation(50, "x", seed=1) != permutation(50, "y", seed=1)
