"""Shares as they are in the world: one client for each distinct value of the data's client column."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from datasets import Dataset

from fedpeft.config.base import Frozen
from fedpeft.data.base import Partition
from fedpeft.data.checks import require_column, require_enough

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["Options", "make"]


@final
class Options(Frozen):
    """Nothing to choose: the data says whose each example is."""


@final
@dataclass(frozen=True, kw_only=True)
class Natural(Partition):
    """Client i has the examples of the i-th value of the column, sorted."""

    options: Options

    def partitioner(self, train: Dataset, *, seed: int) -> "Partitioner":
        """Return the partitioner; nothing is drawn.

        Raises:
            DataError: no client column, a missing value in it, or no examples.
        """
        require_column(train, "client", partition="natural")
        require_enough(train, num_clients=1)
        from flwr_datasets.partitioner import NaturalIdPartitioner  # slow: it draws pictures too

        return NaturalIdPartitioner(partition_by="client")


def make(options: Options) -> Partition:
    """Return the partition."""
    return Natural(options=options)
