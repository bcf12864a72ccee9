"""Equal shares of the shuffled examples; sizes differ by one at most."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from datasets import Dataset
from pydantic import Field

from fedpeft.config.base import Frozen
from fedpeft.data.base import Partition
from fedpeft.data.checks import require_enough

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["Options", "make"]


@final
class Options(Frozen):
    """How many clients."""

    num_clients: int = Field(default=10, ge=1)
    """Clients in all."""


@final
@dataclass(frozen=True, kw_only=True)
class Iid(Partition):
    """Every client draws from the same distribution."""

    options: Options

    def partitioner(self, train: Dataset, *, seed: int) -> "Partitioner":
        """Return the partitioner; it cuts the order it is given, so the seed is that of the shuffle before it.

        Raises:
            DataError: fewer examples than clients.
        """
        require_enough(train, self.options.num_clients)
        from flwr_datasets.partitioner import IidPartitioner  # slow: it draws pictures too

        return IidPartitioner(num_partitions=self.options.num_clients)


def make(options: Options) -> Partition:
    """Return the partition."""
    return Iid(options=options)
