"""A local table in CSV, JSON lines or Parquet, with its own column names.

Rows are counted from 1 in error messages, a CSV header not counted.
"""

from dataclasses import dataclass
from typing import final

from pydantic import Field

from fedpeft.data.base import Source, Splits
from fedpeft.data.columns import TableOptions, to_splits
from fedpeft.data.tables import read_table
from fedpeft.files import rooted

__all__ = ["Options", "make"]


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
        train = read_table(rooted(options.path), options.columns)
        test = None if options.test_path is None else read_table(rooted(options.test_path), options.columns)
        where = (options.path, options.test_path or options.path)
        return to_splits(train, test, options, where=where, seed=seed)


def make(options: Options) -> Source:
    """Return the source."""
    return Table(options=options)
