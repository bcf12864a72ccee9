"""Piped output is plain lines; a terminal gets a live bar; neither lets a client's words steer the terminal."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from fedpeft.config import Experiment
from fedpeft.report.progress import PlainWatcher, TerminalWatcher, watcher_for
from fedpeft.report.record import Failure, RoundRecord
from fedpeft.report.summary import summarise
from fedpeft.report.watch import Watcher

SHARES = [
    {"client": 0, "num_examples": 120, "labels": {"[red]bad": 60, "good\x1b[31m": 60}},
    {"client": 2, "num_examples": 80},
]


def _console(*, terminal: bool, encoding: str = "utf-8") -> tuple[Console, Callable[[], str]]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=file, force_terminal=terminal, width=160, color_system="standard" if terminal else None)
    return console, lambda: raw.getvalue().decode(encoding)


def _run(watcher: Watcher, experiment: Experiment, records: list[RoundRecord], first_round: int = 1) -> None:
    watcher.started(experiment, num_clients=3, num_parameters=1234, partition_summary=SHARES, first_round=first_round)
    for record in records:
        for client in record.clients:
            watcher.client_finished(record.round, client, ok=client != 2, bytes_up=10)
        watcher.round_finished(record)
    watcher.finished(summarise(experiment, records, adapter_digest="d"))
    watcher.close()


def test_the_watcher_suits_the_console() -> None:
    assert isinstance(watcher_for(_console(terminal=True)[0]), TerminalWatcher)
    assert isinstance(watcher_for(_console(terminal=False)[0]), PlainWatcher)


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(watcher_for(_console(terminal=True)[0]), PlainWatcher)


def test_plain_output_is_one_line_a_round_without_escape_codes(
    experiment: Experiment, records: list[RoundRecord]
) -> None:
    console, written = _console(terminal=False)
    _run(PlainWatcher(console), experiment, records)
    assert "\x1b" not in written()
    assert "\r" not in written()
    rounds = [line for line in written().splitlines() if line.startswith("round ")]
    assert rounds[0] == "round 0/10  loss 1.2  accuracy 0.25  0.5 s"
    expected = "round 1/10  train loss 1  loss 1.1  accuracy 0.25  clients 2/2  up 1 kB  down 2 kB  2.0 s"
    assert rounds[1] == expected
    assert len(rounds) == len(records)


def test_plain_output_says_what_began_who_failed_and_what_was_reached(
    experiment: Experiment, records: list[RoundRecord]
) -> None:
    console, written = _console(terminal=False)
    _run(PlainWatcher(console), experiment, records)
    lines = written().splitlines()
    assert "1,234 parameters" in lines[0]
    assert "  client 0: 120 examples ([red]bad 60, good [31m 60)" in lines
    assert "  client 2: 80 examples" in lines
    assert "  client 2 failed: no reply in 5 s" in lines
    assert "accuracy: 0.25 -> 0.75" in lines


def test_plain_lines_are_never_wrapped_or_marked_up(experiment: Experiment) -> None:
    console, written = _console(terminal=False)
    console.width = 40
    failure = Failure(client=2, reason="[bold]no\x1b[2J reply[/bold] " + "x" * 200)
    _run(PlainWatcher(console), experiment, [RoundRecord(round=1, clients=(2,), failures=(failure,))])
    assert f"  client 2 failed: [bold]no [2J reply[/bold] {'x' * 200}" in written().splitlines()


def test_letters_the_stream_does_not_have_are_replaced(experiment: Experiment) -> None:
    console, written = _console(terminal=False, encoding="ascii")
    failure = Failure(client=2, reason="délai")
    _run(PlainWatcher(console), experiment, [RoundRecord(round=1, clients=(2,), failures=(failure,))])
    assert "failed: d?lai" in written()


def test_the_bar_shows_rounds_figures_and_failures(experiment: Experiment, records: list[RoundRecord]) -> None:
    console, written = _console(terminal=True)
    _run(TerminalWatcher(console), experiment, records)
    for shown in ("3/10", "accuracy 0.75", "up 3 kB", "down 6 kB", "client 2 failed: no reply in 5 s", "[red]bad 60"):
        assert shown in written()
    assert "\x1b[2J" not in written()


def test_the_bar_of_a_resumed_run_starts_where_the_run_stopped(
    experiment: Experiment, records: list[RoundRecord]
) -> None:
    console, written = _console(terminal=True)
    watcher = TerminalWatcher(console)
    watcher.started(experiment, num_clients=3, num_parameters=1, partition_summary=[], first_round=3)
    watcher.close()
    assert "resumed at round 3" in written()
    assert "2/10" in written()


def test_closing_gives_the_cursor_back_even_before_the_start() -> None:
    console, written = _console(terminal=True)
    TerminalWatcher(console).close()
    assert "\x1b[?25l" not in written()


def test_the_silent_watcher_takes_every_call(experiment: Experiment, records: list[RoundRecord]) -> None:
    _run(Watcher(), experiment, records)
