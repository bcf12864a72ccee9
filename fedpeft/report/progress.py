"""Watchers that write: a live bar where there is a terminal, plain lines everywhere else."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from fedpeft.config import Experiment
from fedpeft.report.lines import closing_lines, failure_lines, opening, partition_rows, round_words
from fedpeft.report.logs import EventWatcher, wants_json
from fedpeft.report.record import RoundRecord
from fedpeft.report.text import as_bytes, as_number, one_line
from fedpeft.report.watch import Share, Watcher

__all__ = ["PlainWatcher", "TerminalWatcher", "plain_watcher", "watcher_for", "watching"]


def watcher_for(console: Console) -> Watcher:
    """Return the watcher that suits where the console writes to, or writes JSON lines where those are asked for."""
    if wants_json():
        return EventWatcher()
    return TerminalWatcher(console) if console.is_terminal and not console.is_dumb_terminal else PlainWatcher(console)


@contextmanager
def watching() -> Iterator[Watcher]:
    """Lend a watcher of this process's output, and close it whatever happens."""
    watcher = watcher_for(Console())
    try:
        yield watcher
    finally:
        watcher.close()


def plain_watcher() -> Watcher:
    """Return one that writes plain lines to standard output, which for a Flower app is the run's log."""
    return EventWatcher() if wants_json() else PlainWatcher(Console())


@final
class PlainWatcher(Watcher):
    """One line a round, without colour or control codes: for files, pipes and continuous integration."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._num_rounds = 0

    def started(
        self,
        experiment: Experiment,
        *,
        num_clients: int,
        num_parameters: int,
        partition_summary: Sequence[Share],
        first_round: int = 1,
    ) -> None:
        """Write what runs, and one line a client."""
        self._num_rounds = experiment.rounds.num_rounds
        self._write(opening(experiment, num_clients, num_parameters, first_round))
        for client, examples, labels in partition_rows(partition_summary):
            self._write(f"  client {client}: {examples} examples{f' ({labels})' if labels else ''}")

    def round_finished(self, record: RoundRecord) -> None:
        """Write the round's line, and a line for each failure."""
        self._write(f"round {record.round}/{self._num_rounds}  {'  '.join(round_words(record))}")
        for line in failure_lines(record):
            self._write(f"  {line}")

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Write what was reached and what it cost."""
        for line in closing_lines(summary):
            self._write(line)

    def _write(self, line: str) -> None:
        printable = one_line(line).encode(self._console.encoding, "replace").decode(self._console.encoding)
        self._console.print(Text(printable), soft_wrap=True)


@final
class TerminalWatcher(Watcher):
    """A live bar over the rounds, with the round's clients and the last round's figures."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = _bar(console)
        self._task = TaskID(0)
        self._cohort = 0
        self._replied = 0
        self._bytes = (0, 0)

    def started(
        self,
        experiment: Experiment,
        *,
        num_clients: int,
        num_parameters: int,
        partition_summary: Sequence[Share],
        first_round: int = 1,
    ) -> None:
        """Show what runs and how the data lie, and start the bar."""
        self._console.print(Text(opening(experiment, num_clients, num_parameters, first_round)))
        self._console.print(_table(partition_summary))
        self._cohort = min(experiment.rounds.clients_per_round or num_clients, num_clients)
        total = experiment.rounds.num_rounds
        self._task = self._progress.add_task("round", total=total, completed=first_round - 1, now="", figures="")
        self._progress.start()

    def client_finished(self, round_number: int, client: int, *, ok: bool, bytes_up: int) -> None:
        """Move the bar by one client, so that the time left is known before the first round is over."""
        self._replied += 1
        state = "" if ok else f", {client} failed"
        done = round_number - 1 + self._replied / self._cohort
        self._progress.update(self._task, completed=done, now=f"client {self._replied}/{self._cohort}{state}")

    def round_finished(self, record: RoundRecord) -> None:
        """Move the bar; failures scroll by above it."""
        self._replied = 0
        self._bytes = (self._bytes[0] + record.bytes_up, self._bytes[1] + record.bytes_down)
        self._progress.update(self._task, completed=record.round, now="", figures=self._figures(record))
        for line in failure_lines(record):
            self._console.print(Text(f"round {record.round}: {line}", style="yellow"))

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Leave the full bar and write what was reached."""
        self._progress.stop()
        for line in closing_lines(summary):
            self._console.print(Text(line))

    def close(self) -> None:
        """Give the terminal back."""
        self._progress.stop()

    def _figures(self, record: RoundRecord) -> str:
        shown = dict(record.metrics) or ({} if record.train_loss is None else {"train loss": record.train_loss})
        figures = [f"{name} {as_number(value)}" for name, value in sorted(shown.items(), reverse=True)]
        figures += [] if record.epsilon is None else [f"epsilon {as_number(record.epsilon)}"]
        return "  ".join([*figures, f"up {as_bytes(self._bytes[0])}", f"down {as_bytes(self._bytes[1])}"])


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=3, max_width=24)),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True, min_width=5)),
        TextColumn("{task.fields[figures]}", markup=False),
        TextColumn("{task.fields[now]}", markup=False, style="dim"),
        console=console,
        transient=False,
    )


def _table(shares: Sequence[Share]) -> Table:
    table = Table("client", "examples", "labels", box=None, header_style="bold")
    for row in partition_rows(shares):
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table
