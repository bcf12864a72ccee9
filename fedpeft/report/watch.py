"""What a run tells whoever looks on. All methods do nothing here, so a watcher overrides only what it shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedpeft.config import Experiment
from fedpeft.report.record import RoundRecord

__all__ = ["Share", "Watcher"]

Share = Mapping[str, Any]
"""What one client holds: ``client``, ``num_examples`` (None where only the client knows) and, for labelled data,
``labels`` (name -> count)."""


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
