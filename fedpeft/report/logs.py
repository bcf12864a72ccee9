"""One JSON object a line, for whoever collects logs: what is logged, and what happens in a run."""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, final

from fedpeft.config import Experiment
from fedpeft.report.record import RoundRecord
from fedpeft.report.watch import Share, Watcher

__all__ = ["FORMAT_VARIABLE", "EventWatcher", "JsonFormatter", "wants_json"]

FORMAT_VARIABLE = "FEDPEFT_LOG_FORMAT"
"""Environment variable: ``json`` or ``text``, for this process and those it starts."""


def wants_json() -> bool:
    """Tell whether lines are to be JSON."""
    return os.environ.get(FORMAT_VARIABLE, "text") == "json"


@final
class JsonFormatter(logging.Formatter):
    """A log record as time, level, logger, message and, of an error, its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        fields = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


@final
class EventWatcher(Watcher):
    """Writes one line an event: ``run_started``, ``client_finished``, ``round_finished``, ``run_finished``."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or _to_standard_output
        self._run: dict[str, Any] = {}

    def started(
        self,
        experiment: Experiment,
        *,
        num_clients: int,
        num_parameters: int,
        partition_summary: Sequence[Share],
        first_round: int = 1,
    ) -> None:
        """Write what runs; each later line names it too."""
        self._run = {"run": experiment.name, "config_hash": experiment.hash}
        told = {"num_clients": num_clients, "num_parameters": num_parameters, "first_round": first_round}
        self._event("run_started", {**told, "num_rounds": experiment.rounds.num_rounds})

    def client_finished(self, round_number: int, client: int, *, ok: bool, bytes_up: int) -> None:
        """Write that one reply came, or none."""
        self._event("client_finished", {"round": round_number, "client": client, "ok": ok, "bytes_up": bytes_up})

    def round_finished(self, record: RoundRecord) -> None:
        """Write the round's record."""
        self._event("round_finished", asdict(record))

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        self._event("run_finished", {"summary": dict(summary)})

    def _event(self, name: str, fields: Mapping[str, Any]) -> None:
        self._write(json.dumps({"time": _time(), "event": name, **self._run, **fields}, allow_nan=False) + "\n")


def _to_standard_output(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _time(seconds: float | None = None) -> str:
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds")
