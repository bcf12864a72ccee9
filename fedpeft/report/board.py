"""Where a run stands, from its folder alone: as a table that may be live, and as plain values."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpeft.report.record import RoundRecord
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.text import as_bytes, as_number, as_seconds

__all__ = ["ClientLine", "Standing", "show", "standing", "watch"]

_ROUNDS_SHOWN = 12
_CLIENTS_SHOWN = 20


@final
@dataclass(frozen=True, kw_only=True)
class ClientLine:
    """One client over all rounds."""

    client: int
    asked: int
    failed: int
    last_round: int
    """The newest in which it was asked."""
    last_failure: str | None
    """Why its newest failed reply was not used."""


@final
@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands."""

    name: str
    num_rounds: int
    records: tuple[RoundRecord, ...]
    complete: bool
    quiet_seconds: float | None
    """Since the last round was recorded; None before the first."""
    fence: int
    """The newest fencing token: how often a server of this run was started."""

    @property
    def round(self) -> int:
        """The newest round; 0 where there is none."""
        return self.records[-1].round if self.records else 0

    @property
    def state(self) -> str:
        """``complete``, ``under way`` or ``not begun``; a run that died is under way, and quiet."""
        return "complete" if self.complete else "under way" if self.records else "not begun"

    def clients(self) -> list[ClientLine]:
        """Return one line a client that was ever asked, ascending."""
        rounds: dict[int, list[int]] = {}
        failures: dict[int, list[str]] = {}
        for record in self.records:
            for client in record.clients:
                rounds.setdefault(client, []).append(record.round)
            for failure in record.failures:
                failures.setdefault(failure.client, []).append(failure.reason)
        return [
            ClientLine(
                client=client,
                asked=len(asked),
                failed=len(failures.get(client, ())),
                last_round=asked[-1],
                last_failure=next(reversed(failures.get(client, [])), None),
            )
            for client, asked in sorted(rounds.items())
        ]

    def table(self) -> dict[str, Any]:
        """Return it as plain values."""
        last = self.records[-1] if self.records else None
        return {
            "name": self.name,
            "state": self.state,
            "round": self.round,
            "num_rounds": self.num_rounds,
            "quiet_seconds": None if self.quiet_seconds is None else round(self.quiet_seconds, 1),
            "fence": self.fence,
            "metrics": dict(last.metrics) if last else {},
            "epsilon": last.epsilon if last else None,
            "bytes_up": sum(record.bytes_up for record in self.records),
            "bytes_down": sum(record.bytes_down for record in self.records),
            "clients": [vars(line) for line in self.clients()],
        }


def standing(path: Path, *, fence: int = 0) -> Standing:
    """Read where a run stands.

    Raises:
        ResumeError: there is no run, or its record is damaged.
    """
    run = RunDirectory.open(path)
    experiment, records = run.experiment(), run.records()
    recorded = path / "rounds.jsonl"
    return Standing(
        name=experiment.name,
        num_rounds=experiment.rounds.num_rounds,
        records=records,
        complete=bool(run.summary()),
        quiet_seconds=max(0.0, time.time() - recorded.stat().st_mtime) if records else None,
        fence=fence,
    )


def show(found: Standing, console: Console | None = None) -> None:
    """Print it once."""
    (console or Console()).print(_board(found))


def watch(path: Path, *, seconds: float = 1.0, console: Console | None = None) -> None:
    """Show it live until the run is complete."""
    with Live(_board(standing(path)), console=console or Console(), auto_refresh=False) as live:
        while not (found := standing(path)).complete:
            live.update(_board(found), refresh=True)
            time.sleep(seconds)
        live.update(_board(found), refresh=True)


def _board(found: Standing) -> RenderableType:
    quiet = f", last round {as_seconds(found.quiet_seconds)} ago" if found.quiet_seconds and not found.complete else ""
    started = f", server {found.fence}" if found.fence > 1 else ""
    head = Text(f"{found.name}: {found.state}, round {found.round} of {found.num_rounds}{quiet}{started}", style="bold")
    parts: list[RenderableType] = [head]
    if found.records:
        parts.append(_rounds(found.records[-_ROUNDS_SHOWN:]))
    if clients := found.clients():
        parts.append(_clients(clients))
    return Group(*parts)


def _rounds(records: Sequence[RoundRecord]) -> Table:
    names = sorted({name for record in records for name in record.metrics}, reverse=True)
    private = any(record.epsilon is not None for record in records)
    table = _headed("round", "clients", "failed", *names, *(["epsilon"] if private else []), "up", "down", "time")
    for record in records:
        metrics = [as_number(record.metrics[name]) if name in record.metrics else "" for name in names]
        spent = ["" if record.epsilon is None else as_number(record.epsilon)] if private else []
        moved = [as_bytes(record.bytes_up), as_bytes(record.bytes_down), as_seconds(record.total_seconds)]
        counts = [str(record.round), str(len(record.clients)), str(len(record.failures) or "")]
        table.add_row(*map(Text, [*counts, *metrics, *spent, *moved]))
    return table


def _clients(lines: Sequence[ClientLine]) -> Table:
    """Those that failed most come first where there are too many."""
    shown = sorted(sorted(lines, key=lambda line: -line.failed)[:_CLIENTS_SHOWN], key=lambda line: line.client)
    table = _headed("client", "asked", "failed", "last round", "last failure")
    for line in shown:
        cells = [line.client, line.asked, line.failed or "", line.last_round, (line.last_failure or "")[:80]]
        table.add_row(*(Text(str(cell)) for cell in cells))
    if len(lines) > len(shown):
        table.add_row(Text(f"{len(lines) - len(shown)} more"))
    return table


def _headed(*names: str) -> Table:
    table = Table(box=None, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name == "last failure" else "right", no_wrap=name != "last failure")
    return table
