"""What adds up over one round's replies."""

import math
from dataclasses import dataclass, field
from typing import Any, final

from fedpeft.errors import RunError
from fedpeft.report.record import Failure
from fedpeft.rounds.exchange import Reply
from fedpeft.wire.message import Update

__all__ = ["Tally"]


@final
@dataclass
class Tally:
    """A round's running sums."""

    total: Any
    """The strategy's own."""
    clients: list[int] = field(default_factory=list)
    """Whose training replies were taken or missing, in that order; a spare that was not needed is not among them."""
    num_updates: int = 0
    num_within: int = 0
    """Updates within privacy's clip, where these are counted."""
    failures: list[Failure] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    floats_up: int = 0
    floats_down: int = 0
    _loss_sum: float = 0.0
    _num_examples: int = 0
    _bits_up: float | None = 0.0

    @property
    def train_loss(self) -> float | None:
        """Mean over the examples of the clients that told theirs; None where nobody did."""
        return self._loss_sum / self._num_examples if self._num_examples else None

    @property
    def answered(self) -> list[int]:
        """The clients whose updates were taken."""
        failed = {failure.client for failure in self.failures}
        return [client for client in self.clients if client not in failed]

    @property
    def bytes_up_bound(self) -> int | None:
        """The fewest bytes that the updates could take; None where a codec has no model."""
        return None if self._bits_up is None else math.ceil(self._bits_up / 8)

    def count(self, reply: Reply) -> None:
        """Add what any reply cost."""
        self.bytes_up += reply.bytes_up
        self.bytes_down += reply.bytes_down
        self.floats_up += reply.floats_up
        self.floats_down += reply.floats_down
        if reply.failure is not None:
            self.failures.append(reply.failure)

    def add(self, reply: Reply, header: Update, num_examples: int) -> None:
        """Add what a usable update tells."""
        self.num_updates += 1
        known = self._bits_up is not None and reply.bits_up is not None
        self._bits_up = (self._bits_up or 0.0) + (reply.bits_up or 0.0) if known else None
        if header.train_loss is not None:
            self._loss_sum += header.train_loss * num_examples
            self._num_examples += num_examples

    def require(self, round_number: int, *, min_clients: int, least_updates: int) -> None:
        """Refuse to aggregate too few updates.

        Raises:
            RunError: names both bounds, and why each client failed.
        """
        if self.num_updates >= max(min_clients, least_updates):
            return
        reasons = "\n".join(f"  client {failure.client}: {failure.reason}" for failure in self.failures)
        raise RunError(
            f"round {round_number}: {self.num_updates} client(s) replied, rounds.min_clients = {min_clients} "
            f"and the strategy needs {least_updates}; "
            f"the last checkpoint stands, resume when this is mended:\n{reasons}"
        )
