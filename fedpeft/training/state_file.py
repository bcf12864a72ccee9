"""States of many examples in one file that is mapped, not read: each example's own tokens, end to end.

First the states, then where each example's begin (int64, one more than there are examples), then three numbers
(int64): the examples, the width, and the dtype's place in a list.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final, overload

import numpy
import torch
from torch import Tensor

from fedpeft.errors import RunError
from fedpeft.tasks.base import Examples, Row
from fedpeft.tasks.given import STATES
from fedpeft.tensors import raw

__all__ = ["WithStates", "read_states", "write_states"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FOOTER = 3


@final
@dataclass(frozen=True, eq=False)
class WithStates(Sequence[Row]):
    """Rows, each with its states beside what it had."""

    examples: Examples
    states: Tensor
    """Shape (tokens of all examples, width)."""
    bounds: list[int]
    """Example i has states[bounds[i]:bounds[i + 1]]."""

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._row(place) for place in range(*index.indices(len(self)))]
        return self._row(range(len(self))[index])

    def _row(self, index: int) -> Row:
        own = self.states[self.bounds[index] : self.bounds[index + 1]]
        return {**self.examples[index], STATES: own}


def write_states(path: Path, chunks: Iterator[tuple[Tensor, list[int]]], *, most: int, num_rows: int) -> int | None:
    """Write chunks of (batch, longest, width), with each example's number of tokens, and return the file's bytes.

    None, and no file, as soon as all states together seem to need more than ``most`` bytes: judged by those so far, so
    that what cannot fit is not computed to the end. A file is whole or not there; another process may write the same.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            bounds, states = [0], torch.empty(0)
            for states, lengths in chunks:
                for row, length in zip(states, lengths, strict=True):
                    file.write(raw(row[:length]))
                    bounds.append(bounds[-1] + length)
                if file.tell() * num_rows > most * (len(bounds) - 1):
                    return None
            footer = [len(bounds) - 1, states.shape[-1], _DTYPES.index(states.dtype)]
            file.write(numpy.asarray([*bounds, *footer], dtype=numpy.int64).tobytes())
            size = file.tell()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return size


def read_states(path: Path, examples: Examples) -> WithStates:
    """Map the file of these examples.

    Raises:
        FileNotFoundError: it is not there, or no longer.
        RunError: it is of another number of examples.
    """
    with path.open("rb") as file:
        file.seek(-8 * (_FOOTER + len(examples) + 1), os.SEEK_END)
        *bounds, num_rows, width, place = numpy.frombuffer(file.read(), dtype=numpy.int64).tolist()
        if num_rows != len(examples):
            raise RunError(f"{path}: holds states of {num_rows} examples, expected {len(examples)}")
        mapped = numpy.memmap(file, dtype=numpy.uint8, mode="c")
    dtype = _DTYPES[place]
    flat = torch.from_numpy(mapped)[: bounds[-1] * width * dtype.itemsize].view(dtype)
    return WithStates(examples, flat.view(-1, width), bounds)
