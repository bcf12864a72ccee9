"""Encoded examples as flat tensors: a million short rows are a handful of objects until one is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import final, overload

import numpy as np
import torch
from torch import Tensor

from fedpeft.tasks.base import Row

__all__ = ["Ragged", "Rows", "stacked"]


@final
@dataclass(frozen=True)
class Ragged:
    """Integer sequences of many lengths, end to end."""

    flat: Tensor
    """Shape (sum of lengths,), int32."""
    bounds: Tensor
    """Shape (num_rows + 1,), int64: row i is flat[bounds[i]:bounds[i + 1]]."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """Lay rows end to end."""
        bounds = np.cumsum([0, *map(len, rows)])
        flat = np.fromiter(chain.from_iterable(rows), np.int32, count=int(bounds[-1]))
        return cls(torch.from_numpy(flat), torch.from_numpy(bounds))

    def __getitem__(self, index: int) -> Tensor:
        return self.flat[self.bounds[index] : self.bounds[index + 1]]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Rows(Sequence[Row]):
    """A sequence of rows, each put together when it is asked for."""

    num_rows: int
    ragged: Mapping[str, Ragged] = field(default_factory=dict)
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> tensor of shape (num_rows, ...)."""
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> tensor that is the same in every row."""

    def __len__(self) -> int:
        return self.num_rows

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._row(position) for position in range(*index.indices(self.num_rows))]
        if not -self.num_rows <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        return self._row(index % self.num_rows)

    def _row(self, index: int) -> Row:
        ragged = {name: rows[index] for name, rows in self.ragged.items()}
        return {**ragged, **{name: values[index] for name, values in self.fixed.items()}, **self.shared}


def stacked(rows: Sequence[Row], name: str) -> Tensor:
    """Return one entry of each row, shape (batch, ...)."""
    return torch.stack([row[name] for row in rows])
