"""Virtual clients: what each holds is drawn when it is asked for, so that a population takes no memory."""

from dataclasses import dataclass
from typing import Any, final

import numpy
from datasets import Dataset

from fedpeft.data.base import Drawn, VirtualPartition
from fedpeft.data.shares import LISTED, counted, rest
from fedpeft.errors import DataError

__all__ = ["VirtualShares", "made_when_drawn"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class VirtualShares:
    """What ``Shares`` is where data is dealt; here any two clients may hold the same example."""

    train: Dataset
    drawn: Drawn
    num_clients: int
    """Clients in all."""
    examples_each: int
    """Examples of each."""

    def examples(self, client: int) -> Dataset:
        """Return one client's examples.

        Raises:
            DataError: there is no such client.
        """
        if not 0 <= client < self.num_clients:
            raise DataError(f"client {client}: expected 0 <= client < {self.num_clients}")
        return self.train.select(self.drawn(client))

    def summary(self, label_names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return what ``Shares.summary`` does; of the clients beyond the first thousand their number alone is known."""
        listed = min(LISTED, self.num_clients)
        rows = [numpy.asarray(self.drawn(client), dtype=numpy.int64) for client in range(listed)]
        more = self.num_clients - listed
        return counted(self.train, rows, label_names) + rest(self.num_clients, more * self.examples_each, {})


def made_when_drawn(partition: VirtualPartition, train: Dataset, *, seed: int) -> VirtualShares:
    """Return the clients of a virtual partition.

    Raises:
        DataError: the partition does not fit the data.
    """
    drawn = partition.drawn(train, seed=seed)
    return VirtualShares(
        train=train, drawn=drawn, num_clients=partition.population, examples_each=partition.examples_each
    )
