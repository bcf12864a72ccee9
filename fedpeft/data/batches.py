"""The order in which a client goes through its examples: a fresh shuffle each epoch, from the seed alone."""

from collections.abc import Iterator
from itertools import count, islice

from fedpeft.data.splits import permutation
from fedpeft.errors import DataError

__all__ = ["batch_indices", "num_batches"]


def batch_indices(
    num_examples: int, batch_size: int, *, seed: int, epochs: int | None, steps: int | None
) -> Iterator[list[int]]:
    """Yield the indices of each batch.

    Args:
        num_examples: of this client.
        batch_size: indices in a batch; the last batch of an epoch may be shorter, never empty.
        seed: decides every shuffle.
        epochs: whole passes over the examples; give this or steps.
        steps: exactly so many batches, going on into further epochs.

    Raises:
        DataError: there are no examples.
        ValueError: another number is below 1, or not exactly one of epochs and steps is given.
    """
    if num_examples < 1:
        raise DataError(f"num_examples = {num_examples}: a client needs at least one example to train")
    if (epochs is None) == (steps is None):
        raise ValueError(f"epochs = {epochs}, steps = {steps}: expected exactly one of them")
    if min(batch_size, epochs or 1, steps or 1) < 1 or 0 in {epochs, steps}:
        raise ValueError(f"batch_size = {batch_size}, epochs = {epochs}, steps = {steps}: expected >= 1")
    return islice(_batches(num_examples, batch_size, seed, epochs), steps)


def num_batches(num_examples: int, batch_size: int, *, epochs: int | None, steps: int | None) -> int:
    """Return how many batches ``batch_indices`` yields."""
    return steps if steps is not None else (epochs or 0) * -(-num_examples // batch_size)


def _batches(num_examples: int, batch_size: int, seed: int, epochs: int | None) -> Iterator[list[int]]:
    for epoch in count() if epochs is None else range(epochs):
        order = permutation(num_examples, "batches", epoch, seed=seed)
        for start in range(0, num_examples, batch_size):
            yield order[start : start + batch_size]
