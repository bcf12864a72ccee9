"""A local table in CSV, JSON lines or Parquet, with its own column names.

Rows are counted from 1 in error messages, a CSV header not counted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pyarrow
from pyarrow import csv, parquet
from pydantic import Field

from fedpeft.data.base import Source, Splits
from fedpeft.data.columns import Cells, TableOptions, choose, to_splits
from fedpeft.errors import DataError
from fedpeft.files import rooted

__all__ = ["Options", "make"]

_BLOCK_BYTES = 1 << 24
"""A CSV row must fit in one block; pyarrow's default of 1 MiB is short for long texts."""


@final
class Options(TableOptions):
    """Which files, and which of their columns."""

    path: str = Field(min_length=1)
    """Training table; ends in .csv, .jsonl or .parquet."""
    test_path: str | None = Field(default=None, min_length=1)
    """Held-out table; without it, test_fraction of the training table is held out."""


@final
@dataclass(frozen=True, kw_only=True)
class Table(Source):
    """Canonical columns out of one file or two."""

    options: Options

    def load(self, *, seed: int) -> Splits:
        """Read the files, check every cell and split.

        Raises:
            DataError: names the file, the column and the row.
        """
        options = self.options
        train = _read(rooted(options.path), options.columns)
        test = None if options.test_path is None else _read(rooted(options.test_path), options.columns)
        where = (options.path, options.test_path or options.path)
        return to_splits(train, test, options, where=where, seed=seed)


def make(options: Options) -> Source:
    """Return the source."""
    return Table(options=options)


def _read(path: Path, wanted: Mapping[str, str]) -> Cells:
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a file that ends in .csv, .jsonl or .parquet")
    if not path.is_file():
        raise DataError(f"{path}: no such file (the working directory is {Path.cwd()})")
    try:
        return readers[path.suffix](path, wanted)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as {path.suffix[1:]}: {error}") from error


def _read_csv(path: Path, wanted: Mapping[str, str]) -> Cells:
    read = csv.ReadOptions(block_size=_BLOCK_BYTES)
    parse = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(path, read_options=read, parse_options=parse) as reader:
        columns = choose(wanted, reader.schema.names, where=str(path))
    # As strings: type inference would turn "01" into 1 and "2020-01-01" into a date.
    convert = csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pyarrow.string()))
    table: Cells = csv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert).to_pydict()
    return table


def _read_parquet(path: Path, wanted: Mapping[str, str]) -> Cells:
    columns = choose(wanted, parquet.read_schema(path).names, where=str(path))
    # One file, as it is: neither neighbours nor folders named key=value add to it.
    table: Cells = parquet.read_table(path, columns=columns, partitioning=None).to_pydict()
    return table


def _read_jsonl(path: Path, wanted: Mapping[str, str]) -> Cells:
    """Read by the standard library: pyarrow's reader turns strings that look like dates into dates."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    rows = [_object(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    columns = choose(wanted, sorted({name for row in rows for name in row}), where=str(path))
    return {name: [row.get(name) for row in rows] for name in columns}


def _object(line: str, where: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: expected an object such as {{"text": "..."}}, got {line.strip()[:40]}')
    return row
