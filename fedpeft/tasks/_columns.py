"""Raw columns and raw inputs, checked as they are read."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from fedpeft.errors import DataError

__all__ = ["input_texts", "labels", "require", "texts", "values"]


def require(data: Dataset, name: str) -> None:
    """Raise DataError unless the column is there."""
    if name not in data.column_names:
        raise DataError(f"no column {name!r}; there is: {', '.join(data.column_names) or 'none'}")


def texts(data: Dataset, name: str) -> list[str]:
    """Return a column of texts.

    Raises:
        DataError: no such column, or a row that is not a text; says which.
    """
    require(data, name)
    found: list[Any] = data[name][:]
    return _all_texts(found, f"column {name!r}, row")


def labels(data: Dataset) -> Tensor:
    """Return the column ``label``, shape (num_rows,), int64.

    Raises:
        DataError: no such column, or a row that is not a class index.
    """
    require(data, "label")
    found: list[Any] = data["label"][:]
    for index, value in enumerate(found):
        if not isinstance(value, int) or value < 0:
            raise DataError(f"column 'label', row {index}: expected a class index >= 0, got {value!r}")
    return torch.tensor(found, dtype=torch.int64)


def values(inputs: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Return one key of each raw input.

    Raises:
        DataError: an input lacks it; says which and what it has.
    """
    for index, given in enumerate(inputs):
        if name not in given:
            raise DataError(f"input {index} has no {name!r}; it has: {', '.join(given) or 'nothing'}")
    return [given[name] for given in inputs]


def input_texts(inputs: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Return one text of each raw input.

    Raises:
        DataError: an input lacks it, or it is not a text; says which.
    """
    return _all_texts(values(inputs, name), f"{name!r} of input")


def _all_texts(found: list[Any], where: str) -> list[str]:
    for index, value in enumerate(found):
        if not isinstance(value, str):
            raise DataError(f"{where} {index}: expected a text, got {value!r}")
    return found
