"""Each client has one node, or the run says which has none."""

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedpeft.errors import RunError
from fedpeft.rounds import collect, roster
from fedpeft.rounds.roster import find_clients
from fedpeft.training.workbench import Workbench, assemble
from fedpeft.wire.message import Join, Joined
from fedpeft.wire.payload import pack, unpack
from tests.conftest import tiny
from tests.rounds.grids import FakeGrid

Answer = Callable[[Message], Message | None]


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return assemble(tiny())


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (collect, roster):
        monkeypatch.setattr(module, "time", clock)
    return clock


def join(client: int) -> Answer:
    def answer(sent: Message) -> Message:
        header, _ = unpack(sent.content, Join)
        return Message(pack(Joined(envelope=header.envelope, client=client, versions={})), reply_to=sent)

    return answer


def grid_of(answers: dict[int, Answer]) -> FakeGrid:
    def arrivals(under_way: list[Message]) -> list[Message]:
        replies = [answers[sent.metadata.dst_node_id](sent) for sent in under_way]
        return [reply for reply in replies if reply is not None]

    return FakeGrid(arrivals, nodes=answers)


def test_clients_are_found_whatever_their_nodes_are_called(bench: Workbench) -> None:
    grid = grid_of({900: join(1), 40: join(2), 7: join(0)})
    found = find_clients(grid, bench)
    assert found == {0: 7, 1: 900, 2: 40}
    assert list(found) == [0, 1, 2]


def test_two_nodes_of_one_client(bench: Workbench) -> None:
    with pytest.raises(RunError, match="node 900 says it is client 0: taken already"):
        find_clients(grid_of({7: join(0), 40: join(1), 900: join(0)}), bench)


@pytest.mark.parametrize("client", [3, 2**31 - 1])
def test_a_client_that_the_partition_does_not_know(bench: Workbench, client: int) -> None:
    with pytest.raises(RunError, match=f"node 900 says it is client {client}: .*not below 3"):
        find_clients(grid_of({7: join(0), 40: join(1), 900: join(client)}), bench)


def test_too_few_nodes_within_patience(bench: Workbench, clock: Clock) -> None:
    with pytest.raises(RunError, match="only 2 of 3 nodes are there after 20 s; start one node a client"):
        find_clients(grid_of({7: join(0), 40: join(1)}), bench, patience=20)
    assert 20 < clock.now < 22


def test_a_node_that_comes_late_is_waited_for(bench: Workbench, clock: Clock) -> None:
    grid = grid_of({7: join(0), 40: join(1), 900: join(2)})
    monotonic = clock.monotonic

    def later() -> float:
        grid.nodes = [7, 40, 900] if clock.now > 3 else [7, 40]
        return monotonic()

    clock.monotonic = later  # type: ignore[method-assign]
    assert find_clients(grid, bench) == {0: 7, 1: 40, 2: 900}


def refusing(sent: Message) -> Message:
    return Message(Error(1000, "WireError: the server runs another experiment file"), reply_to=sent)


def strange(sent: Message) -> Message:
    return Message(RecordDict({"hello": ConfigRecord({"a": 1})}), reply_to=sent)


def of_another_run(sent: Message) -> Message:
    header, _ = unpack(sent.content, Join)
    fields: dict[str, Any] = {**vars(header.envelope), "job": "another-0123"}
    return Message(pack(Joined(envelope=type(header.envelope)(**fields), client=1, versions={})), reply_to=sent)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusing, "node 40 refused the plan: WireError: the server runs another experiment file"),
        (strange, "node 40 gave no valid answer to the handshake: .*record"),
        (of_another_run, "node 40 gave no valid answer to the handshake: .*job another-0123"),
        (lambda _: None, "node 40 did not answer the handshake in time"),
    ],
)
def test_what_a_node_answers_wrongly_is_said_with_its_name(bench: Workbench, answer: Answer, said: str) -> None:
    with pytest.raises(RunError, match=said):
        find_clients(grid_of({7: join(0), 40: answer, 900: join(2)}), bench, patience=20)
