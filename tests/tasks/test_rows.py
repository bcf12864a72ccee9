"""Rows held as flat tensors read like a list of rows."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.tasks._rows import Ragged, Rows


def rows(lists: list[list[int]]) -> Rows:
    return Rows(
        num_rows=len(lists),
        ragged={"tokens": Ragged.of(lists)},
        fixed={"index": torch.arange(len(lists))},
        shared={"pad": torch.tensor(9)},
    )


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=6))
def test_every_row_comes_back(lists: list[list[int]]) -> None:
    held = rows(lists)

    assert [row["tokens"].tolist() for row in held] == lists
    assert [int(row["index"]) for row in held] == list(range(len(lists)))
    assert all(int(row["pad"]) == 9 for row in held)
    assert len(held) == len(lists)


def test_slices_and_negative_indices() -> None:
    held = rows([[1], [2, 3], []])

    assert [row["tokens"].tolist() for row in held[::-1]] == [[], [2, 3], [1]]
    assert held[-3]["tokens"].tolist() == [1]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"row {index} of 3"):
            held[index]


def test_rows_survive_a_pickle() -> None:
    held = pickle.loads(pickle.dumps(rows([[1], [2, 3]])))  # noqa: S301 - what this test itself wrote

    assert held[1]["tokens"].tolist() == [2, 3]
