"""Who holds what: training examples dealt to clients, checked once, read one client at a time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy
import numpy.typing
import pyarrow
from datasets import ClassLabel, Dataset, Value

from fedpeft.data.base import Partition
from fedpeft.data.checks import quiet
from fedpeft.data.splits import permutation
from fedpeft.errors import DataError
from fedpeft.seeds import derive

__all__ = ["LISTED", "Shares", "counted", "deal", "rest"]

_Rows = numpy.typing.NDArray[numpy.int64]

LISTED = 1000
"""Clients that a summary tells of one by one; those beyond are one line together."""
_ROW = "__row__"
"""Column that carries an example's place in the training data through flwr-datasets."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Shares:
    """The training data and, for each client, the rows it holds, in the order they were dealt: two arrays in all."""

    train: Dataset
    order: _Rows
    """Of all clients, one after the other: int64 (num_dealt,), indices into train, no two the same."""
    bounds: _Rows
    """int64 (num_clients + 1,): client i has ``order[bounds[i]:bounds[i + 1]]``, never empty."""

    @classmethod
    def of(cls, train: Dataset, rows: Iterable[_Rows]) -> "Shares":
        """Lay each client's rows end to end."""
        dealt = list(rows)
        order = numpy.concatenate(dealt) if dealt else numpy.zeros(0, dtype=numpy.int64)
        return cls(train=train, order=order, bounds=numpy.cumsum([0, *map(len, dealt)], dtype=numpy.int64))

    @property
    def num_clients(self) -> int:
        """Clients in all."""
        return len(self.bounds) - 1

    @property
    def num_undealt(self) -> int:
        """Training examples that no client holds: those of labels nobody was given."""
        return len(self.train) - len(self.order)

    def sizes(self) -> list[int]:
        """Return each client's number of examples."""
        sizes: list[int] = numpy.diff(self.bounds).tolist()
        return sizes

    def rows(self, client: int) -> _Rows:
        """Return one client's rows, int64 (num_examples,).

        Raises:
            DataError: there is no such client.
        """
        if not 0 <= client < self.num_clients:
            raise DataError(f"client {client}: expected 0 <= client < {self.num_clients}")
        return self.order[self.bounds[client] : self.bounds[client + 1]]

    def examples(self, client: int) -> Dataset:
        """Return one client's examples; nothing is read or copied before they are asked for.

        Raises:
            DataError: there is no such client.
        """
        return self.train.select(self.rows(client))

    def summary(self, label_names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return ``client``, ``num_examples`` and ``labels`` (name -> count, zeros too) of each client, for JSON.

        Clients beyond the first thousand are one entry together: ``client`` says which, ``num_clients`` how many.
        """
        listed = min(LISTED, self.num_clients)
        groups = [*(self.rows(client) for client in range(listed)), self.order[self.bounds[listed] :]]
        *told, together = counted(self.train, groups, label_names)
        return told + rest(self.num_clients, together["num_examples"], together["labels"])


def counted(train: Dataset, rows: Iterable[_Rows], label_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what each of the first clients holds."""
    labels = numpy.asarray(train["label"][:] if label_names else [0] * len(train), dtype=numpy.int64)
    counts = ((len(own), numpy.bincount(labels[own], minlength=len(label_names)).tolist()) for own in rows)
    return [
        {"client": client, "num_examples": size, "labels": dict(zip(label_names, count, strict=False))}
        for client, (size, count) in enumerate(counts)
    ]


def rest(num_clients: int, num_examples: int | None, labels: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the one entry of those clients that are not listed, or none where all are."""
    if num_clients <= LISTED:
        return []
    who = {"client": f"{LISTED} to {num_clients - 1}", "num_clients": num_clients - LISTED}
    return [{**who, "num_examples": num_examples, "labels": dict(labels)}]


def deal(train: Dataset, partition: Partition, *, seed: int) -> Shares:
    """Shuffle the examples and deal them to clients.

    The partitioner sees the columns that hold single values (label, client, texts), never images.

    Raises:
        DataError: the partition does not fit the data, a client would have no example, or two would share one.
    """
    partitioner = partition.partitioner(train, seed=derive(seed, "partition"))
    partitioner.dataset = _numbered(train, seed=seed)
    try:
        # flwr-datasets draws anew with a warning each time, and shows a progress bar.
        with quiet():
            rows = tuple(_rows(partitioner.load_partition(client)) for client in range(partitioner.num_partitions))
    except ValueError as error:
        raise DataError(f"{len(train)} examples cannot be dealt by {partition}: {error}") from error
    _check(rows, partition)
    return Shares.of(train, rows)


def _numbered(train: Dataset, *, seed: int) -> Dataset:
    """Return the shuffled examples with their row numbers; several partitioners cut the order they are given."""
    order = numpy.asarray(permutation(len(train), "deal", seed=seed), dtype=numpy.int64)
    single = [name for name, feature in train.features.items() if isinstance(feature, Value | ClassLabel)]
    numbers = pyarrow.table({_ROW: order})
    if not single:
        return Dataset(numbers)
    table = train.select_columns(single).with_format("arrow")[:].take(order)
    return Dataset(table.append_column(_ROW, numbers[_ROW]))


def _rows(share: Dataset) -> _Rows:
    return numpy.asarray(share[_ROW][:], dtype=numpy.int64)


def _check(rows: tuple[_Rows, ...], partition: Partition) -> None:
    """Refuse a deal that would spoil an experiment quietly; a third party's partition may do anything."""
    if not rows:
        raise DataError(f"{partition} deals to no client; expected at least one")
    if empty := sum(not len(own) for own in rows):
        raise DataError(
            f"{partition} leaves {empty} of {len(rows)} clients without an example; "
            "lower the number of clients or use more examples"
        )
    dealt = numpy.concatenate(rows)
    if len(numpy.unique(dealt)) < len(dealt):
        raise DataError(f"{partition} gives {len(dealt) - len(numpy.unique(dealt))} examples to more than one client")
