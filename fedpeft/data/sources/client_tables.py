"""A local table for each client, on the client's own machine: CSV, JSON lines or Parquet.

``{client}`` in the path is the client's number, from 0. A node needs its own file alone. The held-out table is public:
it lies on every machine, and the labels are those that it has.
"""

from dataclasses import dataclass
from typing import Self, final

from datasets import Dataset
from pydantic import Field, model_validator

from fedpeft.data.base import OwnSource, Splits
from fedpeft.data.columns import ColumnOptions, to_dataset
from fedpeft.data.splits import subsample
from fedpeft.data.tables import read_table
from fedpeft.files import rooted

__all__ = ["Options", "make"]

_PLACE = "{client}"


@final
class Options(ColumnOptions):
    """Which files, and which of their columns; max_train is of each client."""

    path: str = Field(min_length=1)
    """Training tables; holds ``{client}`` and ends in .csv, .jsonl or .parquet."""
    test_path: str = Field(min_length=1)
    """Held-out table, the same on every machine."""

    @model_validator(mode="after")
    def _own(self) -> Self:
        if _PLACE not in self.path:
            raise ValueError(f"path = {self.path!r}: expected {_PLACE} in it; one table for all is source 'table'")
        if self.client is not None:
            raise ValueError(f"client = {self.client!r} has no meaning here: each client has a table of its own")
        return self


@final
@dataclass(frozen=True, kw_only=True)
class ClientTables(OwnSource):
    """One public table, and one for each client that is read when the client trains."""

    options: Options

    def load(self, *, seed: int) -> Splits:
        """Read the held-out table.

        Raises:
            DataError: names the file, the column and the row.
        """
        path = self.options.test_path
        held, label_names = to_dataset(read_table(rooted(path), self.options.columns), self.options, where=path)
        test = subsample(held, self.options.max_test, "test", seed=seed)
        return Splits(train=held.select([]), test=test, label_names=label_names)

    def own(self, client: int, splits: Splits, *, seed: int) -> Dataset:
        """Read one client's table.

        Raises:
            DataError: names the file, the column and the row; or a label that the held-out table does not have.
        """
        options = self.options
        path = options.path.replace(_PLACE, str(client))
        cells = read_table(rooted(path), options.columns)
        data, _ = to_dataset(cells, options, where=path, label_names=splits.label_names, known_from="held-out")
        return subsample(data, options.max_train, "train", str(client), seed=seed)


def make(options: Options) -> OwnSource:
    """Return the source."""
    return ClientTables(options=options)
