"""A sparse downlink: both sides hold the same bits, whatever was lost, missed or stopped; bytes are what was sent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

from fedpeft.config import Experiment
from fedpeft.engines.inline import InlineGrid, simulate
from fedpeft.engines.local import local_client_app
from fedpeft.errors import UnsupportedError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds.memory import entries, forget, pack_memory, put, unpack_memory
from fedpeft.server import serve
from fedpeft.strategies.base import State, Turn
from fedpeft.tensors import Tensors
from fedpeft.training import turn as turns
from fedpeft.training.changes import held_by, held_of
from fedpeft.training.workbench import Workbench, assemble
from fedpeft.wire.message import Broadcast
from fedpeft.wire.payload import size, unpack
from tests.conftest import needed, tiny
from tests.e2e.test_inline import digest, lines
from tests.e2e.test_memory import files, newest
from tests.e2e.test_resume import StoppedError, stop_at

BOTH = {
    "codec": {"name": "compeft", "density": 0.1},
    "codec_down": {"name": "compeft", "density": 0.1},
    "feedback": {"up": True, "down": True},
}


def experiment(run: Path, *, strategy: str = "fedavg", **changes: Any) -> Experiment:
    """Return five rounds of two clients of four, so that clients hold adapters of different ages."""
    both = {"partition": {"num_clients": 4}, "rounds": {"clients_per_round": 2, "num_rounds": 5}, **BOTH, **changes}
    output = {"directory": str(run), **both.pop("output", {})}
    return tiny(run, **needed(strategy, output=output, **both))


def last_state(run: Path) -> State:
    found = checkpoints.latest(run / "checkpoints")
    assert found is not None
    return found.state


Spoil = Callable[[Context], object]


def federate(settings: Experiment, spoil: Callable[[Message, Context], object], seen: list[Message]) -> None:
    """Run in one process with something done to a node before it is asked to train; keep the messages."""
    bench = assemble(settings)
    run, resume = RunDirectory.prepare(settings)
    honest = local_client_app(bench)

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            seen.append(message)
            spoil(message, context)
        return honest(message, context)

    serve(InlineGrid(app, num_clients=bench.shares.num_clients), bench, run, resume=resume)


def headers(seen: list[Message]) -> list[tuple[int, int, int | None, int]]:
    """Return round, client, what the changes begin at and the body's bytes of each message."""
    found = []
    for message in seen:
        header, body = unpack(message.content, Broadcast)
        assert header.changes is not None
        assert header.changes.until == header.envelope.round_number - 1
        found.append((header.envelope.round_number, header.client, header.changes.since, len(body)))
    return found


@pytest.mark.parametrize("codec", [{"name": "compeft"}, {"name": "random_k"}, [{"name": "top_k"}, {"name": "int8"}]])
def test_a_client_trains_from_the_server_s_bits_in_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Any
) -> None:
    received, held = dict[int, set[str]](), dict[int, str]()
    train, settle = turns.train_turn, Workbench.settled

    def trained(bench: Workbench, turn: Turn, *rest: Any, **more: Any) -> Any:
        received.setdefault(turn.round_number, set()).add(turn.received.digest())
        return train(bench, turn, *rest, **more)

    def settled(self: Workbench, before: State, after: State, *, round_number: int, **more: Any) -> State:
        state = settle(self, before, after, round_number=round_number, **more)
        held[round_number] = state.adapter.digest()
        return state

    monkeypatch.setattr("fedpeft.client.train_turn", trained)
    monkeypatch.setattr(Workbench, "settled", settled)
    simulate(experiment(tmp_path / "run", codec_down=codec, feedback={"up": False, "down": True}))

    assert [row["failures"] for row in lines(tmp_path / "run")] == [[]] * 6
    assert received == {number: {held[number - 1]} for number in range(1, 6)}
    assert len(set(held.values())) == 6


def test_each_client_is_sent_what_it_misses_and_nothing_else(tmp_path: Path) -> None:
    seen, settings = list[Message](), experiment(tmp_path / "run")
    federate(settings, lambda *_: None, seen)

    account, rows = dict[int, int](), lines(tmp_path / "run")
    for number, client, since, num_bytes in headers(seen):
        assert since == account.get(client, 0)
        assert (num_bytes == 0) == (since == number - 1)
        account[client] = number - 1
    state = last_state(tmp_path / "run")
    assert {client: held_by(state, client) for client in range(4)} == {c: account.get(c, 0) for c in range(4)}
    for number in range(1, 6):
        sent = [size(message.content) for message in seen if message.metadata.group_id == str(number)]
        assert rows[number]["bytes_down"] == sum(sent)
        assert rows[number]["bytes_down_fp32"] == 2 * 4 * state.adapter.num_elements
    assert rows[1]["bytes_down"] < 2 * 1024, "the first adapter is the plan's: no byte of it is sent"


def test_bodies_are_made_once_for_all_that_miss_the_same(tmp_path: Path) -> None:
    seen = list[Message]()
    federate(experiment(tmp_path / "run", rounds={"clients_per_round": 4, "num_rounds": 3}), lambda *_: None, seen)

    bodies = {number: set() for number in (1, 2, 3)}
    for message in seen:
        header, body = unpack(message.content, Broadcast)
        bodies[header.envelope.round_number].add(body)
    assert [len(found) for found in bodies.values()] == [1, 1, 1]


@pytest.mark.parametrize("strategy", ["fedavg", "rolora", "fedsa_lora"])
@pytest.mark.parametrize(
    ("place", "of", "call"),
    [
        (RunDirectory, "append", 4),
        (checkpoints, "save", 3),
        (InlineGrid, "pull_messages", 3 * 2 + 2),
    ],
)
def test_a_run_that_stops_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, place: Any, of: str, call: int
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    simulate(experiment(whole, strategy=strategy))
    with monkeypatch.context() as patch:
        stop_at(patch, place, of, call, before=place is RunDirectory)
        with pytest.raises(StoppedError):
            simulate(experiment(run, strategy=strategy))

    simulate(experiment(run, strategy=strategy, output={"if_exists": "resume"}))

    assert lines(run) == lines(whole)
    assert [row["failures"] for row in lines(run)] == [[]] * 6
    assert digest(run) == digest(whole)
    assert last_state(run) == last_state(whole)
    assert files(run) == files(whole)
    assert files(run)


def test_workers_give_the_same_bits(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        simulate(experiment(tmp_path / name, simulation={"workers": workers}))

    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert last_state(tmp_path / "one") == last_state(tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def lost(context: Context) -> None:
    forget(context.state)


def changed(context: Context) -> None:
    """Change one entry of the adapter that is held."""
    for number, data in entries(context.state).items():
        memory = unpack_memory(data, where="here")
        name = next(name for name in memory if name.startswith("downlink/") and memory[name].is_floating_point())
        put(context.state, {number: pack_memory(memory.replace({name: memory[name] + 1}))})


@pytest.mark.parametrize("spoil", [lost, changed])
def test_a_client_that_lost_what_it_held_is_sent_the_whole_adapter_at_once(tmp_path: Path, spoil: Spoil) -> None:
    """Without feedback upwards, what it held is all that it can lose, so the bits are those of an unhurt run."""
    settings = {"feedback": {"up": False, "down": True}, "rounds": {"clients_per_round": 4, "num_rounds": 4}}
    seen, spoilt, whole = list[Message](), set[int](), list[Message]()

    def hurt(message: Message, context: Context) -> None:
        if message.metadata.group_id == "3" and message.metadata.dst_node_id in (2, 3):
            if message.metadata.dst_node_id not in spoilt:
                spoil(context)
            spoilt.add(message.metadata.dst_node_id)

    federate(experiment(tmp_path / "run", **settings), hurt, seen)
    federate(experiment(tmp_path / "whole", **settings), lambda *_: None, whole)

    assert [row["failures"] for row in lines(tmp_path / "run")] == [[]] * 5
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    again = [row for row in headers(seen) if row[2] is None]
    assert [(number, client) for number, client, _, _ in again] == [(3, 1), (3, 2)]
    extra = lines(tmp_path / "run")[3]["bytes_down"] - lines(tmp_path / "whole")[3]["bytes_down"]
    assert extra > sum(num_bytes for *_, num_bytes in again) > 2 * 4 * last_state(tmp_path / "run").adapter.num_elements
    assert [since for number, _, since, _ in headers(seen) if number == 4] == [2] * 4


def test_nodes_that_began_anew_with_the_server_need_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Flower's do: they say so, and are sent the whole adapter within the same round."""
    settings: dict[str, Any] = {"feedback": {"up": False, "down": True}}
    simulate(experiment(tmp_path / "whole", **settings))
    with monkeypatch.context() as patch:
        stop_at(patch, checkpoints, "save", 3, before=False)
        with pytest.raises(StoppedError):
            simulate(experiment(tmp_path / "run", **settings))
    seen = list[Message]()

    federate(experiment(tmp_path / "run", **settings, output={"if_exists": "resume"}), lambda *_: None, seen)

    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    assert [row["failures"] for row in lines(tmp_path / "run")] == [[]] * 6
    rows = headers(seen)
    first = {client: since for _, client, since, _ in reversed(rows)}
    behind = sorted(client for client, since in first.items() if since)  # the server took them to hold a later adapter
    assert behind
    assert sorted(client for _, client, since, _ in rows if since is None) == behind


def test_a_client_far_behind_is_sent_the_whole_adapter(tmp_path: Path) -> None:
    """A change is a quarter of the adapter or more, so of the last ones three are kept."""
    rounds = {"clients_per_round": 1, "num_rounds": 12}
    seen = list[Message]()
    down = [{"name": "top_k", "density": 1.0}, {"name": "int8"}]
    codecs = {"codec": {"name": "none"}, "codec_down": down, "feedback": {"up": False, "down": True}}
    federate(experiment(tmp_path / "run", rounds=rounds, **codecs), lambda *_: None, seen)

    rows, account, whole = headers(seen), dict[int, int](), 0
    for number, client, since, num_bytes in rows:
        assert since in (None, account.get(client, 0))
        whole = max(whole, num_bytes) if since is None else whole
        account[client] = number - 1
    assert [row["failures"] for row in lines(tmp_path / "run")] == [[]] * 13
    assert whole
    assert all(num_bytes <= whole for *_, num_bytes in rows)


def test_a_client_whose_update_was_not_taken_may_hold_more_than_the_server_counts_on(tmp_path: Path) -> None:
    """It trained, so it holds the adapter of that round; it takes of the next message what it lacks."""
    settings = experiment(tmp_path / "run", rounds={"clients_per_round": 4, "num_rounds": 3}, feedback={"up": False})
    bench = assemble(settings)
    run, resume = RunDirectory.prepare(settings)
    honest, seen = local_client_app(bench), list[Message]()

    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type == "train":
            seen.append(message)
        lose = (message.metadata.group_id, message.metadata.dst_node_id) == ("2", 1)
        return Message(honest(seen[0], context).content, reply_to=message) if lose else reply

    serve(InlineGrid(app, num_clients=4), bench, run, resume=resume)

    assert [[f["client"] for f in row["failures"]] for row in lines(tmp_path / "run")] == [[], [], [0], []]
    assert [(c, since) for number, c, since, _ in headers(seen) if number == 3] == [(0, 0), (1, 1), (2, 1), (3, 1)]


def test_clients_are_evaluated_on_the_adapter_the_round_came_to(tmp_path: Path) -> None:
    evaluated = {"evaluate": {"on_clients": True}}
    simulate(experiment(tmp_path / "run", **evaluated))
    rows = lines(tmp_path / "run")

    assert [row["failures"] for row in rows] == [[]] * 6
    assert all(row["client_metrics"] for row in rows[1:])


def test_what_a_client_holds_is_the_adapter_it_trained_from(tmp_path: Path) -> None:
    settings = experiment(tmp_path / "run", rounds={"clients_per_round": 4, "num_rounds": 2})
    simulate(settings)
    simulate(experiment(tmp_path / "shorter", rounds={"clients_per_round": 4, "num_rounds": 1}))
    held = held_of(newest(tmp_path / "run", 0), Tensors())

    assert held.version == 1
    assert held.adapter.digest() == last_state(tmp_path / "shorter").adapter.digest()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "flora": ({}, "makes each adapter anew or changes frozen weights"),
    "fedex_lora": ({}, "makes each adapter anew or changes frozen weights"),
    "flexlora": ({}, "makes each adapter anew"),
    "lora_fair": ({}, "makes each adapter anew"),
    "median": ({}, "makes each adapter anew"),
    "scaffold": ({}, "sends tensors beside it that are no change"),
    "dylora": ({}, "sends clients unequal ranks"),
    "fedavg": ({"adapter": {"name": "sorsa"}}, "brings its parameters back"),
}


@pytest.mark.parametrize(("strategy", "changes", "words"), [(name, *case) for name, case in REFUSED.items()])
def test_changes_are_refused_where_they_have_no_meaning(
    tmp_path: Path, strategy: str, changes: dict[str, Any], words: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises(UnsupportedError, match=rf"codec_down = 'compeft'.*{words}"):
        simulate(tiny(run, **needed(strategy, codec_down={"name": "compeft"}, **changes)))
    assert not run.exists()


def test_momentum_on_the_server_goes_down_as_changes_too(tmp_path: Path) -> None:
    for strategy in ("fedavgm", "fedadam"):
        simulate(experiment(tmp_path / strategy, strategy=strategy))
        assert [row["failures"] for row in lines(tmp_path / strategy)] == [[]] * 6
        exact = last_state(tmp_path / strategy).exact
        assert torch.isfinite(torch.tensor(exact.norm()))
