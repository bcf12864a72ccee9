"""What an operator sees: a run's standing, its metrics, its log lines."""

import json
import logging
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedpeft.cli import app
from fedpeft.engines.inline import simulate
from fedpeft.errors import InputError, ResumeError
from fedpeft.report.board import show, standing, watch
from fedpeft.report.logs import EventWatcher, JsonFormatter
from fedpeft.report.metrics import measured
from fedpeft.report.record import Failure, RoundRecord
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.watch import Watcher
from tests.conftest import tiny

RECORDS = (
    RoundRecord(round=0, metrics={"loss": 2.0}, seconds={"evaluate": 1.0}),
    RoundRecord(
        round=1,
        clients=(0, 2),
        failures=(Failure(client=2, code="late", reason="no reply within rounds.timeout_seconds = 9.0"),),
        metrics={"loss": 1.5},
        epsilon=0.5,
        bytes_up=100,
        bytes_down=300,
        seconds={"clients": 4.0, "evaluate": 1.0},
    ),
    RoundRecord(
        round=2,
        clients=(0, 1),
        failures=(
            Failure(client=1, code="gave_up", reason="RunError: my disk is full"),
            Failure(client=0, code="norm", reason="norm 9"),
        ),
        metrics={"loss": 1.25},
        epsilon=0.75,
        bytes_up=50,
        bytes_down=300,
        seconds={"clients": 2.0},
    ),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = RunDirectory.create(tmp_path / "run", tiny())
    for record in RECORDS:
        made.append(record)
    return made.path


def test_where_a_run_stands_is_read_from_its_folder(run: Path) -> None:
    done = CliRunner().invoke(app, ["status", str(run), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert (told["state"], told["round"], told["num_rounds"], told["fence"]) == ("under way", 2, 3, 0)
    assert (told["bytes_up"], told["bytes_down"], told["epsilon"], told["metrics"]) == (150, 600, 0.75, {"loss": 1.25})
    assert [(each["client"], each["asked"], each["failed"], each["last_round"]) for each in told["clients"]] == [
        (0, 2, 1, 2), (1, 1, 1, 2), (2, 1, 1, 1)
    ]  # fmt: skip
    assert told["clients"][1]["last_failure"] == "RunError: my disk is full"


def test_the_table_shows_rounds_and_clients(run: Path) -> None:
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    show(standing(run, fence=3), console)
    text = console.export_text()
    console.file.close()
    assert "round 2 of 3" in text
    assert "server 3" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "2", "1", "1.5", "0.5", "100", "B", "300", "B", "5.0", "s"] in rows
    assert "no reply within" in text


def test_a_run_is_watched_until_it_is_complete(tmp_path: Path) -> None:
    simulate(tiny(tmp_path / "run", rounds={"num_rounds": 1}))
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    watch(tmp_path / "run", console=console)
    console.file.close()
    assert "complete, round 1 of 1" in console.export_text()


def test_where_no_run_is_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"no run there"):
        standing(tmp_path)


def test_metrics_are_counted_from_the_rounds_and_served_for_the_block(unused_port: int) -> None:
    with measured(Watcher(), port=unused_port) as watcher:
        watcher.started(tiny(), num_clients=3, num_parameters=9, partition_summary=[])
        for record in RECORDS:
            watcher.round_finished(record)
        watcher.finished({})
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        with (
            pytest.raises(InputError, match=f"metrics at 127.0.0.1:{unused_port}: "),
            measured(Watcher(), port=unused_port),
        ):
            pytest.fail("two have the port")
    values = {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if not line.startswith("#")}
    wanted = {
        "fedpeft_rounds_total": 3,
        "fedpeft_replies_total": 1,
        'fedpeft_refusals_total{reason="late"}': 1,
        'fedpeft_refusals_total{reason="gave_up"}': 1,
        'fedpeft_refusals_total{reason="norm"}': 1,
        'fedpeft_bytes_total{direction="up"}': 150,
        'fedpeft_bytes_total{direction="down"}': 600,
        'fedpeft_seconds_total{phase="clients"}': 6,
        "fedpeft_round": 2,
        "fedpeft_num_rounds": 3,
        "fedpeft_epsilon": 0.75,
        'fedpeft_metric{name="loss"}': 1.25,
        "fedpeft_complete": 1,
        "fedpeft_starts_total": 1,
    }
    assert {name: values.get(name) for name in wanted} == wanted
    assert "my disk" not in "\n".join(lines), "what a client wrote is no label"


@pytest.fixture
def unused_port() -> int:
    from fedpeft.engines.superlink import free_port

    return free_port()


def test_each_event_is_one_json_line_that_names_its_run() -> None:
    written: list[str] = []
    watcher = EventWatcher(written.append)
    watcher.started(tiny(), num_clients=3, num_parameters=9, partition_summary=[])
    watcher.client_finished(1, 2, ok=False, bytes_up=0)
    watcher.round_finished(RECORDS[1])
    watcher.finished({"num_rounds": 3})
    events: list[dict[str, Any]] = [json.loads(line) for line in written]
    assert [event["event"] for event in events] == ["run_started", "client_finished", "round_finished", "run_finished"]
    assert {(event["run"], event["config_hash"]) for event in events} == {("tiny-vit", tiny().hash)}
    assert events[2]["failures"] == [
        {"client": 2, "code": "late", "reason": "no reply within rounds.timeout_seconds = 9.0"}
    ]
    assert all(line.count("\n") == 1 for line in written)


def test_a_log_record_is_one_line_with_its_traceback() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("fedpeft.x", logging.WARNING, "f", 1, "client %d\ngave up", (3,), sys.exc_info())
    line = JsonFormatter().format(record)
    told = json.loads(line)
    assert "\n" not in line
    assert (told["level"], told["logger"], told["message"]) == ("warning", "fedpeft.x", "client 3\ngave up")
    assert "ValueError: a" in told["traceback"]


def test_serve_wants_one_place(tmp_path: Path) -> None:
    for options in (
        [],
        ["--superlink", "a:1"],
        ["--deployment", "x", "--superlink", "a:1", "--root-certificates", "c"],
    ):
        done = CliRunner().invoke(app, ["serve", str(tmp_path / "e.toml"), *options])
        assert isinstance(done.exception, InputError)
        assert "name where it runs" in str(done.exception)
