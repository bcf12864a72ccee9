"""Only the server with the newest token commits: an old one that wakes up writes nothing."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from fedpeft.engines.inline import InlineGrid, simulate
from fedpeft.engines.local import local_client_app
from fedpeft.errors import InputError, ResumeError, RunError
from fedpeft.files import locked
from fedpeft.report.record import RoundRecord
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.watch import Watcher
from fedpeft.rounds import fence
from fedpeft.server import serve
from fedpeft.training.workbench import assemble
from tests.conftest import tiny


def test_tokens_rise_from_one_and_outlive_whoever_issued_them(tmp_path: Path) -> None:
    assert fence.current(tmp_path) == 0
    assert [fence.issue(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert fence.current(tmp_path) == 3
    assert fence.claim(tmp_path).token == 4
    assert fence.claim(tmp_path, 4).token == 4


def issue_many(folder: str) -> None:
    for _ in range(20):
        fence.issue(Path(folder))


def test_tokens_issued_at_once_all_differ(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=issue_many, args=(str(tmp_path),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert fence.current(tmp_path) == 80, "two with one token would have left less"


def test_an_older_token_is_refused_with_both_numbers(tmp_path: Path) -> None:
    old = fence.claim(tmp_path)
    fence.issue(tmp_path)
    with pytest.raises(RunError, match="token 1 and the newest is 2: another server has taken over"), old.held():
        pytest.fail("it may not commit")
    with pytest.raises(RunError, match="token 1"):
        fence.claim(tmp_path, 1)


def test_while_one_commits_no_newer_token_is_issued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "_PATIENCE_SECONDS", 0.2)
    held = fence.claim(tmp_path)
    with held.held(), pytest.raises(InputError, match="in the middle of a commit"):
        fence.issue(tmp_path)
    assert fence.issue(tmp_path) == 2


@pytest.mark.parametrize("text", ["", "{}", '{"fence": 0}', '{"fence": true}', '{"fence": 1.5}', "[1]"])
def test_a_damaged_token_lets_nobody_commit(tmp_path: Path, text: str) -> None:
    (tmp_path / fence.FILE_NAME).write_text(text)
    with pytest.raises(ResumeError, match=r"fence\.json: damaged .* which server may commit is not known"):
        fence.issue(tmp_path)


def test_a_lock_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", refusal="first"),
        pytest.raises(InputError, match="taken"),
        locked(tmp_path / "lock", refusal="taken", patience=0.1),
    ):
        pytest.fail("two have it")


class TakenOver(Watcher):
    """Issues a newer token when a round is in the record, as a supervisor that has given this server up."""

    def __init__(self, folder: Path, after: int) -> None:
        self.folder, self.after = folder, after

    def round_finished(self, record: RoundRecord) -> None:
        if record.round == self.after:
            fence.issue(self.folder)


def test_a_server_that_was_replaced_commits_nothing_more_and_the_next_ends_with_the_same_bits(tmp_path: Path) -> None:
    experiment = tiny(tmp_path / "run")
    bench = assemble(experiment)
    run, _ = RunDirectory.prepare(experiment)
    grid = InlineGrid(local_client_app(bench), num_clients=3)
    with pytest.raises(RunError, match="token 1 and the newest is 2"):
        serve(grid, bench, run, watcher=TakenOver(run.path, after=1))
    assert [record.round for record in run.records()] == [0, 1]
    assert not run.summary()

    resumed = simulate(tiny(tmp_path / "run", output={"if_exists": "resume"}))
    assert fence.current(run.path) == 3
    assert resumed["adapter_digest"] == simulate(tiny(tmp_path / "whole"))["adapter_digest"]


def test_a_server_that_starts_too_late_forgets_nothing_of_the_record(tmp_path: Path) -> None:
    simulate(tiny(tmp_path / "run"))
    before = (tmp_path / "run" / "rounds.jsonl").read_bytes()
    late = tiny(tmp_path / "run", output={"if_exists": "resume", "fence": 7})
    run, _ = RunDirectory.prepare(late)
    bench = assemble(late)
    with pytest.raises(RunError, match="token 7 and the newest is 1"):
        serve(InlineGrid(local_client_app(bench), num_clients=3), bench, run, resume=True)
    assert (tmp_path / "run" / "rounds.jsonl").read_bytes() == before


def serve_until_killed(folder: str) -> None:
    with fence.serving(Path(folder), fence.issue(Path(folder))):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_server_that_was_killed_is_told_from_one_that_works_and_one_that_ended(tmp_path: Path) -> None:
    assert not fence.has_died(tmp_path, 1), "none has begun"
    with fence.serving(tmp_path, fence.issue(tmp_path)):
        assert not fence.has_died(tmp_path, 1)
    assert not fence.has_died(tmp_path, 1), "it ended in order"

    victim = multiprocessing.get_context("fork").Process(target=serve_until_killed, args=(str(tmp_path),))
    victim.start()
    victim.join()
    assert fence.has_died(tmp_path, 2)
    assert not fence.has_died(tmp_path, 3), "the next one has not begun yet"
    with fence.serving(tmp_path, 3):
        assert not fence.has_died(tmp_path, 3)
        assert not fence.has_died(tmp_path, 2), "its file is gone"
