"""What a client keeps: keyed by round, in its node's record and on the disk, pruned to what a run could go on from."""

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

from fedpeft.errors import ResumeError
from fedpeft.report.record import Failure, RoundRecord
from fedpeft.rounds.memory import entries, forget, put, recall, remember, unpack_memory
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.tensors import Tensors


def of(number: int) -> Tensors:
    """Return tensors whose order is not that of their names, one of them empty and one a view."""
    return Tensors({"z": torch.full((2, 3), float(number)).T, "a": torch.tensor(float(number)), "n": torch.zeros(0)})


def kept(folder: Path) -> dict[str, list[str]]:
    return {path.name: sorted(file.stem for file in path.iterdir()) for path in sorted(folder.iterdir())}


def train(folder: MemoryFolder, client: int, number: int) -> Tensors:
    """Do what a node does in one round; return what it began with."""
    state = RecordDict()
    with folder.lent(client, state):
        began = recall(state, before=number)
        remember(state, of(number), round_number=number)
    assert entries(state) == {}
    return began


def record(number: int, *clients: int, failed: int | None = None) -> RoundRecord:
    failures = () if failed is None else (Failure(client=failed, reason="tired"),)
    return RoundRecord(round=number, clients=clients, failures=failures, seconds={})


def test_a_round_begins_with_the_newest_memory_older_than_itself() -> None:
    state = RecordDict()
    assert recall(state, before=1) == Tensors()
    for number in (2, 5):
        remember(state, of(number), round_number=number)

    assert [recall(state, before=number) for number in (2, 3, 5, 6)] == [Tensors(), of(2), of(2), of(5)]
    assert list(recall(state, before=9)) == ["z", "a", "n"]


def test_a_round_that_is_run_again_begins_as_it_did() -> None:
    state = RecordDict()
    for number in (1, 4, 4):
        began = recall(state, before=number)
        remember(state, of(number), round_number=number)

    assert began == of(1)
    assert list(entries(state)) == [1, 4]


def test_a_node_holds_two_entries_at_most_and_none_when_told_to_forget() -> None:
    state = RecordDict()
    for number in range(1, 6):
        remember(state, of(number), round_number=number)
        assert len(entries(state)) <= 2

    forget(state)

    assert entries(state) == {}
    assert not list(state)


def test_a_damaged_memory_is_refused() -> None:
    state = RecordDict()
    remember(state, of(1), round_number=1)
    data = bytearray(entries(state)[1])
    data[-1] ^= 1
    for wrong in (bytes(data), bytes(data[:-4]), b"", b"nonsense"):
        with pytest.raises(ResumeError, match=r"^here: damaged .*start a new run$"):
            unpack_memory(wrong, where="here")
        put(state, {1: wrong})
        with pytest.raises(ResumeError, match="memory of round 1: damaged"):
            recall(state, before=2)


@pytest.mark.parametrize(
    ("every", "files"),
    [(1, [5, 6, 7]), (2, [4, 6, 7]), (3, [3, 6, 7]), (4, [4, 7]), (10, [7])],
)
def test_files_stay_that_a_checkpoint_would_go_on_from(tmp_path: Path, every: int, files: list[int]) -> None:
    """In round 7 the checkpoints there are of the two newest multiples of ``every`` below it."""
    folder = MemoryFolder(path=tmp_path, checkpoint_every=every)
    for number in range(1, 8):
        assert train(folder, 3, number) == (of(number - 1) if number > 1 else Tensors())

    assert kept(tmp_path) == {"3": [f"round_{number:06d}" for number in files]}


def test_a_client_drawn_seldom_keeps_its_old_memory(tmp_path: Path) -> None:
    folder = MemoryFolder(path=tmp_path, checkpoint_every=1)
    for number in (2, 9):
        train(folder, 0, number)

    assert kept(tmp_path) == {"0": ["round_000002", "round_000009"]}
    folder.rewind(8)
    assert kept(tmp_path) == {"0": ["round_000002"]}
    assert train(folder, 0, 9) == of(2)


def test_what_fails_leaves_the_disk_as_it_was(tmp_path: Path) -> None:
    folder, state = MemoryFolder(path=tmp_path, checkpoint_every=1), RecordDict()
    train(folder, 0, 1)

    def stopping() -> None:
        with folder.lent(0, state):
            remember(state, of(2), round_number=2)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopping()

    assert kept(tmp_path) == {"0": ["round_000001"]}
    assert entries(state) == {}


def test_a_message_that_only_reads_writes_nothing(tmp_path: Path) -> None:
    folder = MemoryFolder(path=tmp_path / "clients", checkpoint_every=1)
    with folder.lent(0, RecordDict()):
        pass

    assert not (tmp_path / "clients").exists()
    folder.rewind(0)


def test_going_on_without_a_client_that_has_trained_is_refused_by_its_number(tmp_path: Path) -> None:
    folder = MemoryFolder(path=tmp_path, checkpoint_every=1)
    train(folder, 0, 1)
    train(folder, 1, 2)

    folder.require([record(1, 0), record(2, 1, 2, failed=2)])
    with pytest.raises(ResumeError, match=r"client 2 trained in round 3 .* not here .*start a new run"):
        folder.require([record(1, 0), record(2, 1), record(3, 2)])
    with pytest.raises(ResumeError, match="client 0 trained in round 2"):
        folder.require([record(1, 0), record(2, 0, 1)])


def test_going_on_with_a_damaged_memory_is_refused_by_its_file(tmp_path: Path) -> None:
    folder = MemoryFolder(path=tmp_path, checkpoint_every=1)
    train(folder, 0, 1)
    path = tmp_path / "0" / "round_000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ResumeError, match=r"0.round_000001\.safetensors: damaged"):
        folder.require([record(1, 0)])


def test_clients_lie_together_by_thousands_and_are_found_again(tmp_path: Path) -> None:
    folder = MemoryFolder(path=tmp_path, checkpoint_every=1)
    for client in (3, 999, 1000, 123_456):
        train(folder, client, 1)
        train(folder, client, 2)

    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("round_000002.safetensors")}
    assert found == {f"{where}/round_000002.safetensors" for where in ("3", "999", "1000s/1000", "123000s/123456")}
    folder.require([record(2, 3, 999, 1000, 123_456)])
    folder.rewind(1)
    assert len(list(tmp_path.rglob("round_*.safetensors"))) == 4
    assert all(train(folder, client, 2) == of(1) for client in (3, 999, 1000, 123_456))
