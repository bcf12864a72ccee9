"""Read columns of a CSV, JSON lines or Parquet file, cells as they are."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow
from pyarrow import csv, parquet

from fedpeft.data.columns import Cells, choose
from fedpeft.errors import DataError

__all__ = ["read_table"]

_BLOCK_BYTES = 1 << 24
"""A CSV row must fit in one block; pyarrow's default of 1 MiB is short for long texts."""


def read_table(path: Path, wanted: Mapping[str, str]) -> Cells:
    """Return the wanted columns (canonical name -> name in the file) under their own names.

    Raises:
        DataError: no such file, another format, a damaged one, or a column that is not there.
    """
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
