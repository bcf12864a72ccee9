from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.data.batches import batch_indices
from fedpeft.errors import DataError

SMALL = settings(max_examples=40, deadline=None)


@SMALL
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4), st.integers(0, 2**62))
def test_each_epoch_holds_every_example_once(num_examples: int, batch_size: int, epochs: int, seed: int) -> None:
    batches = list(batch_indices(num_examples, batch_size, seed=seed, epochs=epochs, steps=None))
    per_epoch = -(-num_examples // batch_size)
    assert len(batches) == epochs * per_epoch
    for epoch in range(epochs):
        own = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(index for batch in own for index in batch) == list(range(num_examples))
        assert all(len(batch) == batch_size for batch in own[:-1])


@SMALL
@given(st.integers(1, 20), st.integers(1, 25), st.integers(1, 30))
def test_steps_go_on_where_epochs_would(num_examples: int, batch_size: int, steps: int) -> None:
    by_steps = list(batch_indices(num_examples, batch_size, seed=3, epochs=None, steps=steps))
    by_epochs = batch_indices(num_examples, batch_size, seed=3, epochs=steps, steps=None)
    assert len(by_steps) == steps
    assert by_steps == list(islice(by_epochs, steps))


def test_a_short_last_batch_is_kept() -> None:
    sizes = [len(batch) for batch in batch_indices(7, 3, seed=0, epochs=2, steps=None)]
    assert sizes == [3, 3, 1, 3, 3, 1]


def test_the_seed_and_the_epoch_decide_the_order() -> None:
    def order(seed: int) -> list[list[int]]:
        return list(batch_indices(50, 50, seed=seed, epochs=2, steps=None))

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[0] != order(1)[1]


def test_no_examples_are_refused_before_the_first_batch() -> None:
    with pytest.raises(DataError, match="num_examples = 0"):
        batch_indices(0, 4, seed=0, epochs=1, steps=None)


@pytest.mark.parametrize(
    ("batch_size", "epochs", "steps", "message"),
    [
        (4, 1, 1, "exactly one"),
        (4, None, None, "exactly one"),
        (0, 1, None, "expected >= 1"),
        (4, 0, None, "expected >= 1"),
        (4, None, 0, "expected >= 1"),
        (4, -1, None, "expected >= 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    batch_size: int, epochs: int | None, steps: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        batch_indices(5, batch_size, seed=0, epochs=epochs, steps=steps)
