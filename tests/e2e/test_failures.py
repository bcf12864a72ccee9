"""What goes wrong on a client is counted and named; too much of it stops the run, its checkpoint intact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from fedpeft.config import Experiment
from fedpeft.engines.inline import InlineGrid, simulate
from fedpeft.engines.local import local_client_app
from fedpeft.errors import RunError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.server import serve
from fedpeft.training.workbench import assemble
from tests.conftest import tiny
from tests.e2e.test_inline import digest, lines

Spoil = Callable[[Message, Message], Message]
"""Message and honest reply -> what arrives instead."""


def federate(experiment: Experiment, *, client: int, round_number: int, spoil: Spoil) -> dict[str, Any]:
    """Run with one client's train reply spoilt in one round."""
    bench = assemble(experiment)
    run, resume = RunDirectory.prepare(experiment)
    honest = local_client_app(bench)

    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        target = context.node_config["partition-id"] == client and message.metadata.group_id == str(round_number)
        return spoil(message, reply) if target and message.metadata.message_type == "train" else reply

    grid = InlineGrid(app, num_clients=bench.shares.num_clients)
    return serve(grid, bench, run, resume=resume)


def raising(message: Message, reply: Message) -> Message:
    return Message(Error(2, "the disk of this hospital is full"), reply_to=message)


def flipped(message: Message, reply: Message) -> Message:
    (name,) = reply.content.array_records
    (key,) = reply.content.array_records[name]
    array = reply.content.array_records[name][key]
    data = bytearray(array.data)
    data[len(data) // 2] ^= 0x40
    damaged = ArrayRecord({key: Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=bytes(data))})
    parts = {**reply.content.config_records, name: damaged}
    return Message(RecordDict(parts), reply_to=message)


def empty(message: Message, reply: Message) -> Message:
    return Message(RecordDict({"hello": ConfigRecord({"a": 1})}), reply_to=message)


def echoed(message: Message, reply: Message) -> Message:
    return Message(message.content, reply_to=message)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (raising, "disk of this hospital is full"),
        (flipped, "checksum"),
        (empty, "record"),
        (echoed, "broadcast"),
    ],
)
def test_a_bad_reply_is_named_and_the_round_is_as_if_it_had_not_come(tmp_path: Path, spoil: Spoil, reason: str) -> None:
    federate(tiny(tmp_path / "run"), client=1, round_number=2, spoil=spoil)
    rows = lines(tmp_path / "run")
    assert [failure["client"] for failure in rows[2]["failures"]] == [1]
    assert reason in rows[2]["failures"][0]["reason"]
    assert not rows[1]["failures"]
    assert not rows[3]["failures"]
    federate(tiny(tmp_path / "reference"), client=1, round_number=2, spoil=raising)
    assert digest(tmp_path / "run") == digest(tmp_path / "reference")


def test_below_the_minimum_the_run_stops_and_can_go_on(tmp_path: Path) -> None:
    experiment = tiny(tmp_path / "run", rounds={"min_clients": 3})
    with pytest.raises(
        RunError, match=r"round 2: 2 client.*min_clients = 3 [\s\S]*client 1: the disk of this hospital"
    ):
        federate(experiment, client=1, round_number=2, spoil=raising)
    found = checkpoints.latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.round_number == 1
    output = {"directory": str(tmp_path / "run"), "if_exists": "resume"}
    simulate(tiny(tmp_path / "run", rounds={"min_clients": 3}, output=output))
    simulate(tiny(tmp_path / "reference", rounds={"min_clients": 3}))
    assert digest(tmp_path / "run") == digest(tmp_path / "reference")


def test_a_round_nobody_answers_is_an_error(tmp_path: Path) -> None:
    experiment = tiny(tmp_path / "run", partition={"num_clients": 1})
    with pytest.raises(RunError, match="round 1: 0 client"):
        federate(experiment, client=0, round_number=1, spoil=raising)


def test_a_client_that_diverges_gives_up_by_itself(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"training diverged"):
        simulate(tiny(tmp_path / "run", train={"optimizer": "sgd", "learning_rate": 1e30}))
