"""A supervisor: it submits again when a job dies, waits for a SuperLink, gives up in the end, and is alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fedpeft.config import Experiment
from fedpeft.deploy import serve as module
from fedpeft.deploy.serve import Patience, serve
from fedpeft.engines import inline
from fedpeft.engines.flower import begin, continued
from fedpeft.engines.operator import Operator, Status
from fedpeft.errors import InputError, RunError
from fedpeft.files import locked
from fedpeft.report.record import RoundRecord
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.watch import Watcher
from fedpeft.rounds import fence
from tests.conftest import tiny


class Superlink:
    """Plays Flower: each submission runs in this process, and dies in the round it is told to."""

    def __init__(self, *deaths: int | None, statuses: Iterable[Status | None] = ()) -> None:
        self.deaths = iter(deaths)
        self.statuses = iter(statuses)
        self.asked: list[str] = []
        self.tokens: list[int] = []
        self.pauses: list[float] = []
        self.died = False

    def submitted(self, _: Operator, experiment: Experiment, *, watcher: Watcher) -> tuple[RunDirectory, int, int]:
        run, _, done = begin(experiment, watcher)
        self.tokens.append(fence.current(run.path))
        death = next(self.deaths, None)
        try:
            inline.simulate(continued(experiment, run), watcher=Dying(death) if death is not None else None)
            self.died = False
        except Killed:
            self.died = True
        return run, len(self.tokens), done

    def follow(self, *_: Any) -> None:
        if self.died:
            raise RunError("Flower ended the run as 'finished:failed': no heartbeat\nits log")

    def status(self, _: int) -> Status:
        found = next(self.statuses, Status("finished:failed", ""))
        if found is None:
            raise RunError("flwr list failed: nobody is there")
        return found

    def ask(self, *arguments: str) -> dict[str, Any]:
        self.asked.append(" ".join(arguments[:2]))
        return {}


class Killed(BaseException):
    """The end of a process."""


class Dying(Watcher):
    def __init__(self, death: int) -> None:
        self.death = death

    def round_finished(self, record: RoundRecord) -> None:
        if record.round == self.death:
            raise Killed


def run(superlink: Superlink, experiment: Experiment, monkeypatch: pytest.MonkeyPatch, **options: Any) -> RunDirectory:
    monkeypatch.setattr(module, "submitted", superlink.submitted)
    monkeypatch.setattr(module, "follow", superlink.follow)
    monkeypatch.setattr(Operator, "status", lambda _, number: superlink.status(number))
    monkeypatch.setattr(Operator, "ask", lambda _, *arguments: superlink.ask(*arguments))
    operator = Operator(environment={}, folder=Path())
    return serve(operator, experiment, watcher=Watcher(), sleep=superlink.pauses.append, **options)


def test_a_job_that_dies_twice_ends_with_the_bits_of_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink, said = Superlink(0, 2), []
    done = run(superlink, tiny(tmp_path / "run"), monkeypatch, say=said.append)
    whole = inline.simulate(tiny(tmp_path / "whole"))
    assert done.summary()["adapter_digest"] == whole["adapter_digest"]
    assert [record.round for record in done.records()] == [0, 1, 2, 3]
    assert superlink.tokens == [1, 2, 3], "each attempt has a token of its own"
    assert superlink.asked == ["stop 1", "stop 2"]
    assert superlink.pauses == [2.0, 2.0], "each brought a round, so the count began anew"
    assert "starting it again in 2 s" in said[0]
    assert "its log" not in said[0]


def test_without_a_new_round_it_waits_longer_each_time_and_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink = Superlink()
    superlink.submitted = lambda *_, **__: (RunDirectory(tmp_path / "run"), 1, 0)  # type: ignore[method-assign]
    superlink.died = True
    patience = Patience(attempts=5, first_seconds=1.0, longest_seconds=3.0)
    with pytest.raises(RunError, match=r"gave up after 5 attempts in a row .* no heartbeat"):
        run(superlink, tiny(tmp_path / "run"), monkeypatch, patience=patience)
    assert superlink.pauses == [1.0, 2.0, 3.0, 3.0]


def test_a_superlink_that_is_away_is_waited_for_and_the_run_that_survived_is_followed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink = Superlink(statuses=[None, None, Status("running", "")])
    followed: list[int] = []

    def follow(_: Operator, number: int, *__: Any) -> None:
        followed.append(number)
        if len(followed) == 1:
            raise RunError("flwr list failed: connection refused")

    monkeypatch.setattr(superlink, "follow", follow)
    run(superlink, tiny(tmp_path / "run"), monkeypatch)
    assert followed == [1, 1], "the same run, and no second submission"
    assert superlink.tokens == [1]
    assert superlink.pauses == [2.0, 4.0]


def test_bad_input_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline.simulate(tiny(tmp_path / "run", rounds={"num_rounds": 1}))
    (tmp_path / "run" / "summary.json").unlink()
    superlink = Superlink()
    with pytest.raises(InputError, match="num_rounds"):
        run(superlink, tiny(tmp_path / "run"), monkeypatch)
    assert superlink.pauses == []


def test_a_complete_run_is_left_alone_so_that_a_restarted_supervisor_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline.simulate(tiny(tmp_path / "run"))
    superlink = Superlink()
    assert run(superlink, tiny(tmp_path / "run"), monkeypatch).summary()
    assert superlink.tokens == []
    with pytest.raises(InputError, match="seed"):
        run(superlink, tiny(tmp_path / "run", seed=99), monkeypatch)


def test_one_supervisor_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path / ".run.serve", refusal=""), pytest.raises(InputError, match="another fedpeft serve"):
        run(Superlink(), tiny(tmp_path / "run"), monkeypatch)
