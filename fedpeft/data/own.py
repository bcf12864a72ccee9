"""Training examples that only their client has: nothing of them is known before they are asked for."""

from dataclasses import dataclass
from typing import Any, final

from datasets import Dataset

from fedpeft.data.base import OwnSource, Splits
from fedpeft.data.shares import LISTED, rest
from fedpeft.errors import DataError

__all__ = ["OwnShares"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class OwnShares:
    """What ``Shares`` is where data is dealt: the clients, and each one's examples, read where it trains."""

    source: OwnSource
    splits: Splits
    num_clients: int
    """Clients in all."""
    seed: int

    def examples(self, client: int) -> Dataset:
        """Return one client's examples.

        Raises:
            DataError: there is no such client, or its data is wrong.
        """
        if not 0 <= client < self.num_clients:
            raise DataError(f"client {client}: expected 0 <= client < {self.num_clients}")
        return self.source.own(client, self.splits, seed=self.seed)

    def summary(self, label_names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return each client by its number alone: what it holds is its own affair."""
        listed = range(min(LISTED, self.num_clients))
        told: list[dict[str, Any]] = [{"client": client, "num_examples": None, "labels": {}} for client in listed]
        return told + rest(self.num_clients, None, {})
