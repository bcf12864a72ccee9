"""A reply that grows in Flower's hands is refused, and the others are taken; with Flower's own bytes."""

import json
import resource
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedpeft.engines.inflating import counted, counting
from fedpeft.engines.patient import PatientGrid
from fedpeft.errors import RefusedError
from fedpeft.rounds.collect import in_order
from fedpeft.wire.record import DAMAGED
from tests.rounds.grids import FakeGrid, message, reply_to

PIECE = 5 * 1024 * 1024


def array(num_bytes: int) -> Array:
    return Array(dtype="uint8", shape=(num_bytes,), stype="fedpeft.v1", data=bytes(num_bytes))


def repeated(whole: Array, times: int) -> bytes:
    """Return an array's own bytes with its one piece named so often."""
    head, _, body = whole.deflate().partition(b"\0")
    kind, pieces, _ = head.split(b" ")
    told = {**json.loads(body), "arraychunk_ids": [0] * times}
    body = json.dumps(told).encode()
    return b" ".join([kind, pieces, str(len(body)).encode()]) + b"\0" + body


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_one_piece_named_four_hundred_times_is_refused_before_it_is_laid_down() -> None:
    whole = array(PIECE)
    hostile, pieces = repeated(whole, 400), dict(whole.children)
    assert len(Array.inflate(repeated(whole, 2), dict(pieces)).data) == 2 * PIECE, "Flower does as it is told"
    before = peak()
    with counting(), counted(2 * PIECE), pytest.raises(RefusedError, match=f"more than {2 * PIECE} bytes") as caught:
        Array.inflate(hostile, pieces)
    assert caught.value.code == "size"
    assert peak() - before < 64 * 1024 * 1024


def test_an_honest_array_is_put_together_as_ever_and_the_guard_goes_with_its_block() -> None:
    whole, original = array(PIECE + 7), vars(Array)["inflate"]
    with counting():
        assert Array.inflate(whole.deflate(), dict(whole.children)).data == whole.data
        with counted(2 * PIECE):
            assert Array.inflate(whole.deflate(), dict(whole.children)).data == whole.data
    assert vars(Array)["inflate"] is original
    with counted(1):
        assert Array.inflate(whole.deflate(), dict(whole.children)).data == whole.data


@pytest.mark.parametrize(
    "part",
    [
        ConfigRecord({"many": list(range(50_000))}),
        MetricRecord({"many": [0.5] * 50_000}),
        ArrayRecord({str(at): array(1) for at in range(2_000)}),
        RecordDict({str(at): ConfigRecord({}) for at in range(2_000)}),
    ],
)
def test_other_records_are_counted_too(part: Any) -> None:
    with counting(), counted(10_000), pytest.raises(RefusedError):
        type(part).inflate(part.deflate(), dict(part.children or {}) or None)


def test_many_pieces_of_nothing_and_a_long_list_are_refused() -> None:
    empty = repeated(array(1), 40_000)
    with counting(), counted(150_000), pytest.raises(RefusedError):
        Array.inflate(empty, dict(array(1).children))
    with counting(), counted(1 << 30), pytest.raises(RefusedError, match="array whose head has"):
        Array.inflate(repeated(array(1), 400_000), dict(array(1).children))


class Inflating(FakeGrid):
    """Puts one client's reply together as Flower would, within the pull."""

    def __init__(self, client: int, content: bytes, pieces: dict[str, Any]) -> None:
        super().__init__(lambda under_way: map(reply_to, under_way))
        self.client, self.content, self.pieces = client, content, pieces

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        if f"id-{self.client + 1}" in asked:
            Array.inflate(self.content, self.pieces)
        return super().pull_messages(asked)


@pytest.mark.parametrize("damage", ["repeated", "no json", "another piece"])
def test_the_client_that_sent_it_has_failed_and_the_others_are_taken(damage: str) -> None:
    whole = array(PIECE)
    content = {"repeated": repeated(whole, 400), "no json": b"Array  3\0abc", "another piece": repeated(whole, 1)}
    pieces = {} if damage == "another piece" else dict(whole.children)
    grid = PatientGrid(Inflating(1, content[damage], pieces), most=2 * PIECE)
    outgoing = ((client, message(client)) for client in range(3))
    with counting():
        taken = dict(in_order(grid, outgoing, window=3, timeout=60.0))
    assert [client for client, reply in taken.items() if reply is not None and reply.has_content()] == [0, 2]
    assert taken[1] is not None
    assert taken[1].error.code == DAMAGED
