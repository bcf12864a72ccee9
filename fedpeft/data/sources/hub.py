"""A data set of the Hugging Face hub, pinned to one commit.

No code of the data set is ever run: only data files are read, and a data set that needs a script is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import datasets
from pydantic import Field

from fedpeft.data.base import Source, Splits
from fedpeft.data.columns import Cells, TableOptions, choose, to_splits
from fedpeft.errors import DataError

__all__ = ["Options", "make"]


@final
class Options(TableOptions):
    """Which data set, and which of its columns."""

    id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
    """Name on the hub, for example ``stanfordnlp/sst2``."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Commit of the data set, 40 hexadecimal digits: a branch name could mean other data tomorrow."""
    config: str | None = Field(default=None, min_length=1)
    """Name of the configuration, where the data set has several."""
    train_split: str = Field(default="train", min_length=1)
    """Split to train on."""
    test_split: str | None = Field(default=None, min_length=1)
    """Split that is held out; without it, test_fraction of the training split is held out."""


@final
@dataclass(frozen=True, kw_only=True)
class Hub(Source):
    """Canonical columns out of one split or two."""

    options: Options

    def load(self, *, seed: int) -> Splits:
        """Download or read from the cache, check every cell and split.

        Raises:
            DataError: not found, not reachable, or a column or cell that does not fit.
        """
        train_split, test_split = self.options.train_split, self.options.test_split
        train = self._read(train_split)
        test = None if test_split is None else self._read(test_split)
        where = (self._place(train_split), self._place(test_split or train_split))
        return to_splits(train, test, self.options, where=where, seed=seed)

    def _place(self, split: str) -> str:
        return f"{self.options.id}, split {split!r}"

    def _read(self, split: str) -> Cells:
        table = self._load(split)
        columns = choose(self.options.columns, table.column_names, where=self._place(split))
        return {name: _cells(table, name, self._place(split)) for name in columns}

    def _load(self, split: str) -> datasets.Dataset:
        options = self.options
        if Path(options.id).exists():
            # load_dataset would read it in place of the hub's, and ignore the revision.
            raise DataError(f"data.id = {options.id!r} is also a path here; run elsewhere, or use the source 'table'")
        try:
            return datasets.load_dataset(options.id, name=options.config, split=split, revision=options.revision)
        except (datasets.exceptions.DatasetsError, OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"{self._place(split)}, revision {options.revision}: {type(error).__name__}: {reason}. Check the id, "
                "the revision, the config and the split on the hub; without a connection, load it once where there is "
                "one and copy the cache folder (HF_HOME), or use a local file with the source 'table'"
            ) from error


def make(options: Options) -> Source:
    """Return the source."""
    return Hub(options=options)


def _cells(table: datasets.Dataset, name: str, where: str) -> Sequence[object]:
    """Return a column's cells, with class numbers put back into class names."""
    cells: list[object] = table[name][:]
    feature = table.features[name]
    if not isinstance(feature, datasets.ClassLabel):
        return cells
    for row, cell in enumerate(cells, 1):
        if cell not in range(feature.num_classes):
            raise DataError(f"{where}: row {row}, column {name!r}: {cell} is no class; this split may have no labels")
    return [feature.names[cell] for cell in cells]
