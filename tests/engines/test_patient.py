"""One reply that never comes whole holds up no other, and no deadline."""

import threading
import time
from collections.abc import Iterable, Iterator

import pytest
from flwr.app import Message

from fedpeft.engines.patient import PatientGrid
from fedpeft.rounds.collect import in_order
from tests.rounds.grids import FakeGrid, message, reply_to


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


class Stalling(FakeGrid):
    """Blocks in the pull of one client's reply, as Flower does while a part of it is missing."""

    def __init__(self, client: int, until: threading.Event) -> None:
        super().__init__(lambda under_way: map(reply_to, under_way))
        self.client, self.until = client, until

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        if f"id-{self.client + 1}" in asked:
            self.until.wait(30)
        return super().pull_messages(asked)


def test_a_reply_that_stalls_is_late_and_the_others_are_taken(let_go: threading.Event) -> None:
    grid, began = PatientGrid(Stalling(1, let_go)), time.monotonic()
    outgoing = ((client, message(client)) for client in range(4))
    taken = [(client, reply is not None) for client, reply in in_order(grid, outgoing, window=4, timeout=1.0)]
    assert taken == [(0, True), (1, False), (2, True), (3, True)]
    assert 1.0 <= time.monotonic() - began < 3.0


def test_a_reply_of_an_earlier_round_that_comes_after_all_is_nobodys(let_go: threading.Event) -> None:
    grid = PatientGrid(Stalling(0, let_go))
    list(in_order(grid, [(0, message(0))], window=1, timeout=0.1))
    let_go.set()
    ((client, reply),) = in_order(grid, [(1, message(1))], window=1, timeout=5.0)
    assert client == 1
    assert reply is not None
    assert reply.metadata.reply_to_message_id == "id-2"


def test_what_fails_in_a_thread_fails_the_pull() -> None:
    class Gone(FakeGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            raise ConnectionError("the SuperLink is gone")

    with pytest.raises(ConnectionError, match="is gone"):
        list(in_order(PatientGrid(Gone(lambda _: [])), [(0, message(0))], window=1, timeout=5.0))
