"""Which clients are left alone for a while: those that let two deadlines in a row pass without a word.

A client that hangs is still there by Flower's reckoning, and costs each round that asks it a whole deadline. What is
counted is what the rounds' records say, so a run that goes on leaves the same clients alone as one that never stopped.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

from fedpeft.report.record import Failure, RoundRecord
from fedpeft.rounds.exchange import Reply

__all__ = ["Score"]

_PATIENCE = 2


@final
@dataclass(frozen=True)
class Score:
    """Silent deadlines in a row, client by client."""

    rest: int = 0
    """Rounds for which such a client is not asked; 0: all are always asked."""
    _silent: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Client -> deadlines in a row that it let pass, and the last round of these."""

    def add(self, records: Iterable[RoundRecord]) -> None:
        """Take note of rounds, in order."""
        for record in records if self.rest else ():
            codes = {failure.client: failure.code for failure in record.failures}
            for client in record.clients:
                code = codes.get(client)
                if code == "late":
                    self._silent[client] = (self._silent.get(client, (0, 0))[0] + 1, record.round)
                elif code != "skipped":
                    self._silent.pop(client, None)

    def awake(self, clients: Sequence[int], round_number: int) -> tuple[int, ...]:
        """Return those of the clients that are asked in this round."""
        return tuple(client for client in clients if not self._rests(client, round_number))

    def resting(self, clients: Sequence[int], round_number: int) -> Iterator[Reply]:
        """Yield what stands in the record for the others."""
        for client in clients:
            if self._rests(client, round_number):
                count, last = self._silent[client]
                words = (
                    f"not asked: silent until the deadline {count} times in a row, last in round {last}; it is asked "
                    f"again in round {last + self.rest + 1} (rounds.rest_rounds = {self.rest})"
                )
                failure = Failure(client=client, code="skipped", reason=words)
                yield Reply(client=client, bytes_down=0, failure=failure)

    def _rests(self, client: int, round_number: int) -> bool:
        count, last = self._silent.get(client, (0, 0))
        return count >= _PATIENCE and round_number <= last + self.rest
