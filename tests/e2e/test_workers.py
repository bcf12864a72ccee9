"""Worker processes: the same bits however many there are, and no way of dying that hangs or hides."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from fedpeft.config import Experiment
from fedpeft.engines import crew, flower, inline
from fedpeft.engines.processes import started_under
from fedpeft.errors import RunError, UnsupportedError
from fedpeft.report.watch import Watcher
from fedpeft.rounds import checkpoint as checkpoints
from tests.conftest import needed, tiny
from tests.e2e.test_flower import letters, write_letters
from tests.e2e.test_inline import digest
from tests.e2e.test_inline import lines as whole_lines
from tests.e2e.test_memory import files

MARK = "FEDPEFT_TEST"
CASES: dict[str, dict[str, Any]] = {
    "fedavg": {"rounds": {"num_rounds": 2}},
    "scaffold": needed(
        "scaffold",
        codec={"name": "int4"},
        feedback={"up": True},
        partition={"num_clients": 4},
        rounds={"clients_per_round": 3, "num_rounds": 3},
    ),
    "fedsa_lora": needed("fedsa_lora", rounds={"clients_per_round": 2, "num_rounds": 2}),
    "privacy": {
        "privacy": {
            "unit": "example",
            "sample_rate": 0.1,
            "clip": 1.0,
            "noise_multiplier": 1.0,
            "delta": 1e-3,
            "noise": "reproducible",
        },
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "rounds": {"num_rounds": 2},
    },
}


def case(name: str, out: Path, workers: int, **output: str) -> Experiment:
    output = {"directory": str(out), **output}
    return tiny(out, **CASES[name], simulation={"workers": workers}, output=output)


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the rounds without what tells how they were run."""
    return [{key: value for key, value in row.items() if key != "worker_processes"} for row in whole_lines(run)]


def state_digests(run: Path) -> tuple[str, str]:
    found = checkpoints.latest(run / "checkpoints")
    assert found is not None
    return found.state.adapter.digest(), found.state.memory.digest()


def same(run: Path, other: Path) -> None:
    assert digest(run) == digest(other)
    assert lines(run) == lines(other)
    assert files(run) == files(other)
    assert state_digests(run) == state_digests(other)


@pytest.mark.parametrize(("name", "workers"), [("fedavg", 3), ("scaffold", 2), ("fedsa_lora", 2), ("privacy", 2)])
def test_the_number_of_workers_changes_no_bit(tmp_path: Path, name: str, workers: int) -> None:
    inline.simulate(case(name, tmp_path / "one", 1))

    summary = inline.simulate(case(name, tmp_path / "many", workers))

    same(tmp_path / "many", tmp_path / "one")
    assert summary["worker_processes"] == [workers]
    assert {row["worker_processes"] for row in whole_lines(tmp_path / "one")} == {0}
    assert multiprocessing.active_children() == []


def test_a_client_that_fails_fails_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third client holds too little; the others also evaluate where they train."""
    monkeypatch.chdir(tmp_path)
    write_letters(tmp_path / "t")
    for name, workers in (("one", 1), ("two", 2)):
        settings = letters(tmp_path / name)
        inline.simulate(tiny_like(settings, workers))

    same(tmp_path / "two", tmp_path / "one")
    assert [failure["client"] for failure in lines(tmp_path / "two")[1]["failures"]] == [2, 2]


def tiny_like(settings: Experiment, workers: int) -> Experiment:
    """Return the experiment with so many workers."""
    from fedpeft import config

    return config.parse({**settings.table(), "simulation": {"workers": workers}})


class Killer(Watcher):
    """Kills one worker when a round's first client has replied."""

    def __init__(self, round_number: int) -> None:
        self.round_number = round_number

    def client_finished(self, round_number: int, client: int, *, ok: bool, bytes_up: int) -> None:
        if round_number == self.round_number and multiprocessing.active_children():
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            self.round_number = -1


def test_a_killed_worker_stops_the_run_by_name_and_fewer_go_on_to_the_same_bits(tmp_path: Path) -> None:
    inline.simulate(case("scaffold", tmp_path / "whole", 1))

    with pytest.raises(RunError, match=r"worker process \d+ ended \(SIGKILL\) while it .*lower simulation.workers"):
        inline.simulate(case("scaffold", tmp_path / "run", 2), watcher=Killer(2))

    assert multiprocessing.active_children() == []
    inline.simulate(case("scaffold", tmp_path / "run", 1, if_exists="resume"))
    same(tmp_path / "run", tmp_path / "whole")


def test_a_worker_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = crew.share

    def cut_short(bench: Any, folder: Path, **options: Any) -> None:
        honest(bench, folder, **options)
        (folder / "weights.bin").unlink()  # this process lies on it
        (folder / "weights.bin").touch()

    monkeypatch.setattr(crew, "share", cut_short)

    with pytest.raises(RunError, match=r"a worker process could not start: RunError: .*0 bytes of weights, expected"):
        inline.simulate(case("fedavg", tmp_path / "run", 2))

    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("length", [20, pytest.param(90, marks=pytest.mark.runtime)])
def test_an_interrupted_run_leaves_no_process_and_no_file(tmp_path: Path, length: int) -> None:
    """Where the name of the folder is too long for a socket workers are started one by one."""
    top = tempfile.mkdtemp(prefix="t", dir="/tmp")
    temporary = Path(top) / ("t" * (length - len(top) - 1))
    temporary.mkdir()
    assert len(str(temporary)) == length
    file = tmp_path / "e.toml"
    file.write_text(case("fedavg", tmp_path / "run", 2).to_toml().replace("num_rounds = 2", "num_rounds = 100000"))
    environment = {**os.environ, MARK: str(tmp_path), "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpeft", "simulate", str(file)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        # What runs these tests in the background may have SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    rounds = tmp_path / "run" / "rounds.jsonl"
    while process.poll() is None and (not rounds.exists() or rounds.read_text().count("\n") < 2):
        time.sleep(0.1)

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them

    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "go on with: fedpeft simulate" in said
    assert "Traceback" not in said, said
    until = time.monotonic() + 30
    while started_under(MARK, str(tmp_path)) and time.monotonic() < until:
        time.sleep(0.1)  # what the workers were forked from sees that all are gone
    assert started_under(MARK, str(tmp_path)) == set()
    assert list(temporary.glob("fedpeft-*")) == []
    shutil.rmtree(top)


def test_several_workers_are_refused_where_something_else_decides(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="under Flower's simulation Ray starts as many"):
        flower.simulate(case("fedavg", tmp_path / "run", 2))
    assert not (tmp_path / "run").exists()
