"""From a table's own column names to the canonical ones, with every cell checked."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Self

from datasets import Dataset
from pydantic import Field, model_validator

from fedpeft.config.base import Frozen
from fedpeft.data.base import Splits
from fedpeft.data.splits import held_out, subsample
from fedpeft.errors import DataError

__all__ = ["Cells", "ColumnOptions", "TableOptions", "choose", "to_dataset", "to_splits"]

Cells = Mapping[str, Sequence[object]]
"""The table's own column name -> its cells, all columns of one length."""

_Canonical = dict[str, list[str]]


class ColumnOptions(Frozen):
    """Which columns of a table are read, under which canonical name, and how many rows."""

    text: str | None = None
    """Column with the text."""
    text2: str | None = None
    """Column with the second text of a pair."""
    label: str | None = None
    """Column with the label, a string or an integer."""
    client: str | None = None
    """Column that says whose example it is."""
    prompt: str | None = None
    """Column with the prompt."""
    answer: str | None = None
    """Column with the answer to the prompt."""
    max_train: int | None = Field(default=None, ge=1)
    """Keep so many training rows at most, drawn by the seed."""
    max_test: int | None = Field(default=None, ge=1)
    """Keep so many held-out rows at most, drawn by the seed."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        if self.text is None and self.prompt is None:
            raise ValueError("expected the name of a column for text or for prompt")
        if (self.text2 and not self.text) or (self.answer and not self.prompt):
            raise ValueError("text2 needs text, and answer needs prompt")
        return self

    @property
    def columns(self) -> dict[str, str]:
        """Canonical name -> name in the table, of the columns that are read."""
        named = {
            "text": self.text,
            "text2": self.text2,
            "label": self.label,
            "client": self.client,
            "prompt": self.prompt,
            "answer": self.answer,
        }
        return {canonical: name for canonical, name in named.items() if name is not None}


class TableOptions(ColumnOptions):
    """The same of a table that may be split."""

    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the rows that is held out where there is no test table."""


def choose(wanted: Mapping[str, str], present: Sequence[str], *, where: str) -> list[str]:
    """Return the columns to read, each once.

    Raises:
        DataError: one is not in the table, or there twice; names those that are.
    """
    for canonical, name in wanted.items():
        if name not in present:
            close = difflib.get_close_matches(name, present, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(
                f"{where}: no column {name!r} for data.{canonical}; the columns are {', '.join(present)}{hint}"
            )
        if present.count(name) > 1:
            raise DataError(f"{where}: {present.count(name)} columns are called {name!r}; rename all but one")
    return sorted(set(wanted.values()))


def to_splits(train: Cells, test: Cells | None, options: TableOptions, *, where: tuple[str, str], seed: int) -> Splits:
    """Check the cells, index the labels and split.

    Args:
        train: the training table.
        test: the held-out table; without one, a share of the training table is held out.
        options: names and limits.
        where: what to call the two tables in an error.
        seed: of the split and of the subsamples.

    Raises:
        DataError: a cell is empty or of the wrong type, a held-out label is not in train, or there are too few rows.
    """
    data, label_names = to_dataset(train, options, where=where[0])
    if test is None:
        data, held = held_out(data, fraction=options.test_fraction, seed=seed)
    else:
        held, _ = to_dataset(test, options, where=where[1], label_names=label_names)
    return Splits(
        train=subsample(data, options.max_train, "train", seed=seed),
        test=subsample(held, options.max_test, "test", seed=seed),
        label_names=label_names,
    )


def to_dataset(
    cells: Cells,
    options: ColumnOptions,
    *,
    where: str,
    label_names: tuple[str, ...] | None = None,
    known_from: str = "training",
) -> tuple[Dataset, tuple[str, ...]]:
    """Check the cells of one table; return them under canonical names, and the names of the labels.

    These are its own, or those given, which are from the data that ``known_from`` names.

    Raises:
        DataError: a cell is empty or of the wrong type, or a label is not among those given.
    """
    checked = _checked(cells, options.columns, where=where)
    names = _label_names(checked.get("label", [])) if label_names is None else label_names
    return _dataset(checked, names, where=where, known_from=known_from), names


def _checked(cells: Cells, columns: Mapping[str, str], *, where: str) -> _Canonical:
    canonical = {
        key: [_cell(value, key, f"{where}: row {row}, column {name!r}") for row, value in enumerate(cells[name], 1)]
        for key, name in columns.items()
    }
    if not any(canonical.values()):
        raise DataError(f"{where}: no rows; expected at least one")
    return canonical


def _cell(value: object, canonical: str, where: str) -> str:
    """Return a cell as text; only a label or a client may be an integer."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: empty; fill the cell or remove the row")
    may_be_integer = canonical in {"label", "client"} and isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, str) and not may_be_integer:
        wanted = "a string or an integer" if canonical in {"label", "client"} else "a string"
        raise DataError(f"{where}: {value!r} is a {type(value).__name__}; expected {wanted}")
    return str(value)


def _label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Sort labels as numbers if all are whole numbers, else as text."""
    distinct = set(labels)
    if all(re.fullmatch(r"[+-]?[0-9]+", label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def _dataset(canonical: _Canonical, label_names: Sequence[str], *, where: str, known_from: str) -> Dataset:
    index = {name: number for number, name in enumerate(label_names)}
    columns: dict[str, list[str] | list[int]] = {**canonical}
    if "label" in canonical:
        for row, label in enumerate(canonical["label"], 1):
            if label not in index:
                known = ", ".join(label_names[:20])
                told = f"label {label!r} is not in the {known_from} data, which has {known}"
                raise DataError(f"{where}: row {row}: {told}")
        columns["label"] = [index[label] for label in canonical["label"]]
    return Dataset.from_dict(columns)
