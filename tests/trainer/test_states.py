"""What clients keep is whole or not there, theirs alone, and forgotten when they join again."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedpeft.errors import InputError, ResumeError
from fedpeft.rounds.memory import entries, recall, remember
from fedpeft.tensors import Tensors
from fedpeft.trainer.states import KEEP_RUNS, States, opened


def joined(job: str = "job", plan: bytes = b"plan") -> RecordDict:
    return RecordDict({"run": ConfigRecord({"job": job, "plan": plan})})


def memory(value: float) -> Tensors:
    return Tensors({"m": torch.full((3,), value)})


def train(states: States, run: int, client: int, round_number: int, *, stopped: bool = False) -> None:
    record = states.of(run, client)
    with states.lent(run, client, record):
        remember(record, memory(round_number), round_number=round_number)
        if stopped:
            raise KeyboardInterrupt


def recalled(states: States, run: int, client: int, *, before: int) -> list[float]:
    record = states.of(run, client)
    with states.lent(run, client, record):
        return recall(record, before=before)["m"].tolist() if entries(record) else []


def test_a_client_has_what_it_joined_with_and_nothing_where_it_has_not(tmp_path: Path) -> None:
    with opened(tmp_path) as states:
        states.join(5, 1, joined(plan=b"\0\xff"))
        assert dict(states.of(5, 1)["run"]) == {"job": "job", "plan": b"\0\xff"}
        assert not any(states.of(run, client) for run, client in ((5, 0), (4, 1), (51, 1)))


def test_memories_outlive_the_process_and_joining_forgets_them(tmp_path: Path) -> None:
    with opened(tmp_path) as states:
        for client in (0, 1):
            states.join(5, client, joined())
        for client, number in ((0, 1), (0, 2), (1, 1)):
            train(states, 5, client, number)
    with opened(tmp_path) as states:
        assert recalled(states, 5, 0, before=3) == [2.0] * 3
        assert recalled(states, 5, 0, before=2) == [1.0] * 3
        states.join(5, 0, joined(job="other"))
        assert recalled(states, 5, 0, before=3) == []
        assert states.of(5, 0)["run"]["job"] == "other"
        assert recalled(states, 5, 1, before=3) == [1.0] * 3


def test_a_block_that_raises_keeps_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as states:
        states.join(5, 0, joined())
        train(states, 5, 0, 1)
        with pytest.raises(KeyboardInterrupt):
            train(states, 5, 0, 2, stopped=True)
        assert recalled(states, 5, 0, before=9) == [1.0] * 3


@pytest.mark.parametrize("name", ["plan.bin", "join.json"])
def test_what_is_damaged_is_named(tmp_path: Path, name: str) -> None:
    with opened(tmp_path) as states:
        states.join(5, 0, joined())
        folder = tmp_path / "runs" / "5" / "0"
        (folder / name).write_bytes(b"plam")
        with pytest.raises(ResumeError, match=rf"{folder}: damaged .*remove this folder"):
            states.of(5, 0)
        (folder / name).unlink()
        with pytest.raises(ResumeError, match=r"damaged \(FileNotFoundError"):
            states.of(5, 0)


def test_another_format_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as states:
        states.join(5, 0, joined())
        path = tmp_path / "runs" / "5" / "0" / "join.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
        with pytest.raises(ResumeError, match="format is another"):
            states.of(5, 0)


def test_two_trainers_do_not_share_a_folder(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(InputError, match="another trainer keeps its state there"), opened(tmp_path):
        pass
    with opened(tmp_path):
        pass


def test_only_the_owner_reads_what_clients_keep(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "state"):
        assert (tmp_path / "a" / "state" / "runs").stat().st_mode & 0o077 == 0


def test_runs_that_were_not_worked_for_lately_are_forgotten_when_another_begins(tmp_path: Path) -> None:
    with opened(tmp_path) as states:
        for run in range(1, KEEP_RUNS + 1):
            states.join(run, 0, joined())
            os.utime(tmp_path / "runs" / str(run), (run, run))
        train(states, 1, 0, 1)
        states.join(99, 0, joined())

        runs = {int(path.name) for path in (tmp_path / "runs").iterdir()}
        assert runs == {1, *range(3, KEEP_RUNS + 1), 99}


def test_the_newest_plan_of_a_job_is_found(tmp_path: Path) -> None:
    with opened(tmp_path) as states:
        assert states.newest_plan("job") is None
        for run, (job, plan) in enumerate([("job", b"old"), ("job", b"new"), ("other", b"x")], 1):
            states.join(run, 0, joined(job, plan))
            os.utime(tmp_path / "runs" / str(run), (run, run))
        assert states.newest_plan("job") == b"new"
        shutil.rmtree(tmp_path / "runs" / "2")
        assert states.newest_plan("job") == b"old"
        assert states.newest_plan("third") is None
