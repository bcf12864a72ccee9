"""A million clients: a run takes no more memory than with few, and gives the same bits however it is run."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from typer.testing import CliRunner

from fedpeft.cli import app
from fedpeft.config import Experiment
from fedpeft.engines.inline import simulate
from fedpeft.engines.local import Answering, LocalNodes
from tests.conftest import needed, tiny
from tests.e2e.test_inline import lines
from tests.e2e.test_memory import files
from tests.e2e.test_workers import same

MILLION = 1_000_000
PRIVATE: dict[str, Any] = {
    "strategy": {"name": "fedavg", "weighting": "uniform"},
    "privacy": {"unit": "client", "delta": 1e-7, "clip": 0.5, "noise_multiplier": 1.0, "noise": "reproducible"},
}


def virtual(out: Path, num_clients: int, **changes: Any) -> Experiment:
    partition = {"name": "resampled", "num_clients": num_clients, "num_examples": 8}
    settings = {"rounds": {"clients_per_round": 4, "num_rounds": 2}, "train": {"local_steps": 1, "batch_size": 8}}
    return tiny(out, partition=partition, **{**settings, **changes})


def traced(experiment: Experiment) -> int:
    """Return the most bytes of Python's and numpy's own that a run held at once."""
    tracemalloc.start()
    try:
        simulate(experiment)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_hundred_times_the_clients_take_no_more_memory(tmp_path: Path) -> None:
    simulate(virtual(tmp_path / "first", 10_000))  # what is read and made once in a process
    few, many = (traced(virtual(tmp_path / str(number), number)) for number in (10_000, MILLION))
    assert many < 1.05 * few
    assert max(client for row in lines(tmp_path / str(MILLION)) for client in row["clients"]) > 10_000
    listed = json.loads((tmp_path / str(MILLION) / "partition.json").read_text())
    assert len(listed) == 1001
    for path in (tmp_path / str(MILLION)).rglob("*"):
        assert path.stat().st_size < 500_000, path


def test_many_clients_give_the_same_bits_again_resumed_and_by_workers(tmp_path: Path) -> None:
    changes = needed("scaffold", rounds={"clients_per_round": 3, "num_rounds": 2})
    simulate(virtual(tmp_path / "one", MILLION, **changes))
    simulate(virtual(tmp_path / "two", MILLION, **changes, simulation={"workers": 2}))
    same(tmp_path / "two", tmp_path / "one")
    assert len({path.parent for path in (tmp_path / "one" / "clients").rglob("round_*.safetensors")}) >= 3
    assert files(tmp_path / "one")


def test_clients_of_a_million_are_protected_as_such(tmp_path: Path) -> None:
    rounds = {"clients_per_round": 5, "num_rounds": 2, "sampling": "poisson", "min_clients": 1}
    summary = simulate(virtual(tmp_path / "run", MILLION, rounds=rounds, **PRIVATE))
    said = summary["privacy"]
    assert said["sampling"] == "Poisson, rate 5e-06"
    assert said["clients"].startswith("VIRTUAL: they draw from shared examples")
    told = CliRunner().invoke(app, ["privacy", "spent", str(tmp_path / "run")])
    assert json.loads(told.output) == said


def test_a_message_leaves_nothing_on_its_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is answered in a context of its own, which goes with it, and no node is asked to join."""
    seen: list[Message] = []
    contexts: list[Context] = []
    answer = Answering.__call__

    def spy(self: Answering, asked: Sequence[tuple[Message, Context]]) -> list[Message]:
        seen.extend(message for message, _ in asked)
        contexts.extend(context for _, context in asked)
        return answer(self, asked)

    monkeypatch.setattr(Answering, "__call__", spy)
    simulate(virtual(tmp_path / "run", MILLION))

    assert [message.metadata.message_type for message in seen] == ["train"] * 8
    assert len({id(context) for context in contexts}) == 8
    assert all(set(context.state) == {"run"} for context in contexts)


def test_nodes_are_known_without_being_kept() -> None:
    nodes = LocalNodes(MILLION)
    assert (len(nodes), nodes[0], nodes[MILLION - 1]) == (MILLION, 1, MILLION)
    assert list(LocalNodes(3).items()) == [(0, 1), (1, 2), (2, 3)]
    for client in (-1, MILLION):
        with pytest.raises(KeyError):
            nodes[client]
    assert vars(nodes) == {"num_clients": MILLION}
