"""Deal rows into training and held-out ones, in a seeded order."""

import torch
from datasets import Dataset

from fedpeft.errors import DataError
from fedpeft.seeds import generator

__all__ = ["held_out", "permutation", "subsample"]


def permutation(num_rows: int, *purpose: str | int, seed: int) -> list[int]:
    """Return 0..num_rows-1 in an order that depends on the seed and the purpose only."""
    order: list[int] = torch.randperm(num_rows, generator=generator(seed, *purpose)).tolist()
    return order


def held_out(data: Dataset, *, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return (train, test), both shuffled; test has ``round(fraction * len(data))`` rows.

    Raises:
        DataError: one of the two would be empty.
    """
    num_test = round(fraction * len(data))
    if not 0 < num_test < len(data):
        raise DataError(
            f"data.test_fraction = {fraction}: {len(data)} examples would give {len(data) - num_test} to train and "
            f"{num_test} to test; expected at least one in each"
        )
    order = permutation(len(data), "held-out", seed=seed)
    return data.select(order[num_test:]), data.select(order[:num_test])


def subsample(data: Dataset, limit: int | None, *purpose: str, seed: int) -> Dataset:
    """Return ``limit`` rows drawn without replacement, or all of them if there are no more than that."""
    if limit is None or len(data) <= limit:
        return data
    return data.select(permutation(len(data), "subsample", *purpose, seed=seed)[:limit])
