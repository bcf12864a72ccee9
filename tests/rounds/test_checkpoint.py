"""A checkpoint is whole, verified, or refused by the name of the piece that is damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft.adapters.plan import Plan
from fedpeft.errors import ResumeError
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds.checkpoint import Checkpoint
from fedpeft.strategies.base import State
from fedpeft.tensors import Tensors


def at(round_number: int) -> Checkpoint:
    adapter = Tensors(
        {"w.B": torch.full((2, 3), float(round_number)), "w.A": torch.tensor(1.5), "head": torch.zeros(0)}
    )
    plan = Plan(adapter="lora", values={"rank": 2}, tensors=Tensors({"frozen": torch.arange(3.0)}))
    state = State(adapter=adapter, memory=Tensors({"momentum": torch.ones(2)}))
    return Checkpoint(round_number=round_number, state=state, plan=plan, config_hash="c" * 64, base_hash="e" * 64)


def test_what_was_saved_comes_back_in_order(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, at(3))
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert list(found.state.adapter) == ["w.B", "w.A", "head"]
    assert found.state.adapter.digest() == at(3).state.adapter.digest()
    assert found.state.memory.digest() == at(3).state.memory.digest()
    assert (found.round_number, found.plan.hash) == (3, at(3).plan.hash)
    assert (found.config_hash, found.base_hash) == ("c" * 64, "e" * 64)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "nowhere") is None
    for number in (0, 2, 9, 10):
        checkpoints.save(tmp_path, at(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_000009", "round_000010"]
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.round_number == 10


def test_until_it_is_renamed_nothing_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, at(1))

    def stopped(*_: Any) -> None:
        raise OSError("the power went off")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "commit_folder", stopped)
        with pytest.raises(OSError, match="power"):
            checkpoints.save(tmp_path, at(2))
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.round_number == 1
    checkpoints.save(tmp_path, at(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_000001", "round_000002"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, cut, empty, gone])
@pytest.mark.parametrize(
    "piece", ["checkpoint.json", "plan.bin", "adapter.safetensors", "memory.safetensors", "exact.safetensors"]
)
def test_a_damaged_piece_is_named(tmp_path: Path, piece: str, damage: Callable[[Path], None]) -> None:
    checkpoints.save(tmp_path, at(1))
    damage(checkpoints.save(tmp_path, at(2)) / piece)
    with pytest.raises(ResumeError, match=rf"round_000002: damaged checkpoint \({piece}: .*remove this folder"):
        checkpoints.latest(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: [],
        lambda header: {**header, "format": 4},
        lambda header: {**header, "round": 1},
        lambda header: {**header, "round": "2"},
        lambda header: {**header, "adapter": None},
        lambda header: {name: value for name, value in header.items() if name != "plan_hash"},
    ],
)
def test_a_header_that_says_something_else_is_refused(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    path = checkpoints.save(tmp_path, at(2)) / "checkpoint.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ResumeError, match=r"damaged checkpoint \(checkpoint.json"):
        checkpoints.latest(tmp_path)


@pytest.mark.parametrize("piece", ["plan.bin", "adapter.safetensors", "memory.safetensors", "exact.safetensors"])
def test_a_piece_of_another_checkpoint_is_refused(tmp_path: Path, piece: str) -> None:
    other = at(1)
    plan = Plan(adapter="lora", values={"rank": 3}, tensors=Tensors())
    state = State(adapter=other.state.adapter, memory=Tensors({"momentum": torch.zeros(2)}), exact=other.state.adapter)
    changed = Checkpoint(round_number=1, state=state, plan=plan, config_hash="c" * 64, base_hash="e" * 64)
    old, new = checkpoints.save(tmp_path, changed), checkpoints.save(tmp_path, at(2))
    (new / piece).write_bytes((old / piece).read_bytes())
    with pytest.raises(ResumeError, match=rf"\({piece}: .*match"):
        checkpoints.latest(tmp_path)
