"""What a run tells whoever looks on. All methods do nothing here, so a watcher overrides only what it shows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from fedpeft.config import Experiment
from fedpeft.report.record import RoundRecord

__all__ = ["Several", "Share", "Watcher", "clients_of"]

Share = Mapping[str, Any]
"""What one client holds: ``client``, ``num_examples`` (None where only the client knows) and, for labelled data,
``labels`` (name -> count). Of many clients the last entry is of all that have none: ``client`` says which (text) and
``num_clients`` how many."""


def clients_of(shares: Iterable[Share]) -> int:
    """Return how many clients these entries tell of."""
    return sum(int(share.get("num_clients", 1)) for share in shares)


class Watcher:
    """Looks on and changes nothing. This one is silent."""

    def started(
        self,
        experiment: Experiment,
        *,
        num_clients: int,
        num_parameters: int,
        partition_summary: Sequence[Share],
        first_round: int = 1,
    ) -> None:
        """All parts are built; first_round is above 1 when the run resumes."""

    def client_finished(self, round_number: int, client: int, *, ok: bool, bytes_up: int) -> None:
        """One of the round's clients has replied, or failed."""

    def round_finished(self, record: RoundRecord) -> None:
        """A round is in the record; round 0 is the evaluation before training."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run is complete."""

    def close(self) -> None:
        """The run is over, in success or not; always called last."""


@final
class Several(Watcher):
    """Tells several watchers, in order."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def started(
        self,
        experiment: Experiment,
        *,
        num_clients: int,
        num_parameters: int,
        partition_summary: Sequence[Share],
        first_round: int = 1,
    ) -> None:
        """Pass on."""
        for watcher in self._watchers:
            watcher.started(
                experiment,
                num_clients=num_clients,
                num_parameters=num_parameters,
                partition_summary=partition_summary,
                first_round=first_round,
            )

    def client_finished(self, round_number: int, client: int, *, ok: bool, bytes_up: int) -> None:
        """Pass on."""
        for watcher in self._watchers:
            watcher.client_finished(round_number, client, ok=ok, bytes_up=bytes_up)

    def round_finished(self, record: RoundRecord) -> None:
        """Pass on."""
        for watcher in self._watchers:
            watcher.round_finished(record)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Pass on."""
        for watcher in self._watchers:
            watcher.finished(summary)

    def close(self) -> None:
        """Pass on."""
        for watcher in self._watchers:
            watcher.close()
