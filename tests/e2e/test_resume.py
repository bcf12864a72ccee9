"""A run that stops at any moment goes on to the same bits."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpeft import cli, server
from fedpeft.config import Experiment
from fedpeft.engines.forking import context
from fedpeft.engines.inline import simulate
from fedpeft.errors import ResumeError
from fedpeft.files import write_atomic
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds import federation
from tests.conftest import tiny
from tests.e2e.test_inline import digest, lines


class StoppedError(Exception):
    """Stands in for the power going off."""


def stop_at(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, call: int, *, before: bool) -> None:
    """Stop the run at the n-th call of a function, before or after it did its work."""
    whole: Callable[..., Any] = vars(place)[name] if isinstance(place, type) else getattr(place, name)
    calls = iter(range(1, 1_000))

    def stopping(*arguments: Any, **options: Any) -> Any:
        now = next(calls) == call
        if now and before:
            raise StoppedError
        result = whole(*arguments, **options)
        if now:
            raise StoppedError
        return result

    monkeypatch.setattr(place, name, stopping)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    simulate(experiment(run))
    return run


def experiment(run: Path, **output: Any) -> Experiment:
    return tiny(run, rounds={"clients_per_round": 2, "num_rounds": 4}, output={"directory": str(run), **output})


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("place", "name", "call"),
    [
        (federation, "guard", 1),
        (RunDirectory, "append", 1),
        (server, "run_round", 2),
        (RunDirectory, "append", 3),
        (checkpoints, "commit_folder", 1),
        (checkpoints, "commit_folder", 3),
        (checkpoints, "save", 2),
        (server, "write_adapter", 1),
        (RunDirectory, "write_summary", 1),
    ],
)
def test_resuming_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path, place: Any, name: str, call: int, before: bool
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, place, name, call, before=before)
        with pytest.raises(StoppedError):
            simulate(experiment(run))
    summary = simulate(experiment(run, if_exists="resume"))
    assert digest(run) == digest(undisturbed) == summary["adapter_digest"]
    assert lines(run) == lines(undisturbed)


def test_a_torn_last_line_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, server, "run_round", 3, before=True)
        with pytest.raises(StoppedError):
            simulate(experiment(run))
    with (run / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 3, "clie')
    simulate(experiment(run, if_exists="resume"))
    assert digest(run) == digest(undisturbed)
    assert lines(run) == lines(undisturbed)


def test_kill_minus_nine(tmp_path: Path) -> None:
    """The real thing: another process, killed twice without warning, then left to finish."""
    file, run = tmp_path / "experiment.toml", tmp_path / "run"
    simulate(tiny(tmp_path / "reference", rounds={"num_rounds": 12}))
    write_atomic(file, (tmp_path / "reference" / "config.toml").read_text())
    for wanted, extra in ((2, []), (6, ["--resume"])):
        _kill_after(wanted, run / "rounds.jsonl", ["simulate", str(file), "--out", str(run), *extra])
    simulate(tiny(run, rounds={"num_rounds": 12}, output={"directory": str(run), "if_exists": "resume"}))
    assert digest(run) == digest(tmp_path / "reference")
    assert lines(run) == lines(tmp_path / "reference")


def _kill_after(num_lines: int, rounds: Path, words: list[str]) -> None:
    """Run a command in a process that has imported all, and kill it when so many rounds are recorded."""
    process = context().Process(target=cli.app, args=(words,))
    process.start()
    deadline = time.monotonic() + 120
    while not rounds.is_file() or rounds.read_bytes().count(b"\n") < num_lines:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = simulate(experiment(run))
    again = simulate(experiment(run, if_exists="resume"))
    assert first["adapter_digest"] == again["adapter_digest"]
    assert first["num_rounds"] == again["num_rounds"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    simulate(experiment(run))
    newest = run / "checkpoints" / "round_000004"
    data = bytearray((newest / "adapter.safetensors").read_bytes())
    data[-3] ^= 1
    (newest / "adapter.safetensors").write_bytes(data)
    expected = digest(run)
    with pytest.raises(ResumeError, match=r"round_000004.*damaged.*adapter.safetensors.*remove this folder"):
        simulate(experiment(run, if_exists="resume"))
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    simulate(experiment(run, if_exists="resume"))
    assert digest(run) == expected


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    simulate(experiment(run))
    changed = tiny(run, train={"learning_rate": 0.5}, output={"directory": str(run), "if_exists": "resume"})
    before = (run / "rounds.jsonl").read_bytes()
    with pytest.raises(ResumeError, match=r"train\.learning_rate"):
        simulate(changed)
    assert (run / "rounds.jsonl").read_bytes() == before
