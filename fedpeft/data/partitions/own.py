"""Nothing is dealt: each client has data of its own, from a source whose clients have."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from datasets import Dataset
from pydantic import Field

from fedpeft.config.base import Frozen
from fedpeft.data.base import Partition
from fedpeft.errors import DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["Options", "make"]


@final
class Options(Frozen):
    """How many clients."""

    num_clients: int = Field(ge=1)
    """Clients in all."""


@final
@dataclass(frozen=True, kw_only=True)
class Own(Partition):
    """What there is to deal, nobody has."""

    options: Options

    @property
    def num_clients(self) -> int:
        """How many clients have data of their own."""
        return self.options.num_clients

    def partitioner(self, train: Dataset, *, seed: int) -> "Partitioner":
        """Refuse.

        Raises:
            DataError: the source has all data in one place.
        """
        raise DataError(
            "partition 'own' deals nothing: it goes with data.name = 'client_tables'; choose another for the rest"
        )


def make(options: Options) -> Partition:
    """Return the partition."""
    return Own(options=options)
