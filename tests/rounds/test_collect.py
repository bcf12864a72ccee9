"""Replies are taken in client order, whatever order they come in, and never too many are held."""

from collections.abc import Callable, Iterable, Iterator

import pytest
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.engines.inline import InlineGrid
from fedpeft.rounds import collect
from fedpeft.rounds.collect import in_order
from tests.rounds.grids import FakeGrid, message, reply_to


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator["Clock"]:
    """A clock that only sleeping moves."""
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(collect, "time", clock)
        yield clock


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def outgoing(num_clients: int) -> Iterable[tuple[int, Message]]:
    return ((client, message(client)) for client in range(num_clients))


def sender(reply: Message | None) -> int | None:
    return None if reply is None else int(str(reply.content["from"]["client"]))


@settings(deadline=None)
@given(num_clients=st.integers(0, 12), window=st.integers(1, 5), data=st.data())
def test_any_order_of_arrival_gives_the_same_order(num_clients: int, window: int, data: st.DataObject) -> None:
    def some(under_way: list[Message]) -> list[Message]:
        return [reply_to(sent) for sent in data.draw(st.lists(st.sampled_from(under_way), unique_by=id))]

    def sooner_or_later(under_way: list[Message]) -> list[Message]:
        return some(under_way) if len(grid.asked) % 5 else [reply_to(under_way[0])]

    grid = FakeGrid(sooner_or_later)
    taken = []
    for client, reply in in_order(grid, outgoing(num_clients), window=window, timeout=3600):
        assert len(grid.pushed) - len(grid.under_way) - len(taken) <= window, "replies held, this one too"
        taken.append((client, sender(reply)))
    assert taken == [(client, client) for client in range(num_clients)]
    assert grid.pushed == list(range(num_clients))
    assert grid.most_under_way <= window


@given(num_clients=st.integers(2, 30), window=st.integers(1, 6))
def test_a_slow_head_holds_up_nobody_else(num_clients: int, window: int) -> None:
    """All but the first are answered at once: the head keeps one place, and as many replies wait as may."""
    grid = FakeGrid(lambda under_way: [reply_to(sent) for sent in under_way if sent.metadata.dst_node_id != 1])
    taken = in_order(grid, outgoing(num_clients), window=window, timeout=100.0)
    assert next(taken) == (0, None)
    held = min(num_clients - 1, window - 1)
    assert len(grid.pushed) == min(num_clients, 1 + held + (window - 1))
    assert [sender(reply) for _, reply in taken] == list(range(1, num_clients))


def test_a_late_reply_is_never_asked_for_again_and_the_others_go_on(clock: Clock) -> None:
    def arrivals(under_way: list[Message]) -> list[Message]:
        return [reply_to(sent) for sent in under_way if sent.metadata.dst_node_id != 2 or clock.now > 60]

    grid = FakeGrid(arrivals)
    taken = list(in_order(grid, outgoing(4), window=2, timeout=50.0))
    assert [(client, sender(reply)) for client, reply in taken] == [(0, 0), (1, None), (2, 2), (3, 3)]
    timed_out = next(number for number, asked in enumerate(grid.asked) if "id-4" in asked)
    assert not any("id-2" in asked for asked in grid.asked[timed_out + 1 :])


def test_a_reply_that_nobody_asked_for_is_dropped_and_a_second_one_does_not_count() -> None:
    stranger = message(7)
    stranger.metadata.__dict__["_message_id"] = "id-of-an-earlier-round"

    def twice(under_way: list[Message]) -> list[Message]:
        return [reply_to(stranger), *(reply_to(sent) for sent in under_way for _ in range(2))]

    taken = list(in_order(FakeGrid(twice), outgoing(3), window=2, timeout=1.0))
    assert [(client, sender(reply)) for client, reply in taken] == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("answer", [[], [None]])
def test_a_message_that_is_not_taken_is_an_error_of_its_client_at_once(answer: list[str], clock: Clock) -> None:
    class Refusing(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            (sent,) = messages
            return super().push_messages([sent]) if sent.metadata.dst_node_id != 2 else answer

    grid = Refusing(lambda under_way: map(reply_to, under_way))
    (_, first), (_, refused), (_, last) = in_order(grid, outgoing(3), window=2, timeout=9.0)
    assert (sender(first), sender(last)) == (0, 2)
    assert refused is not None
    assert "node 2 may be gone" in str(refused.error.reason)
    assert clock.pauses == []


def test_waiting_grows_longer_and_starts_anew_when_something_came(clock: Clock) -> None:
    def at(*times: float) -> Callable[[list[Message]], list[Message]]:
        return lambda under_way: [
            reply_to(sent) for sent in under_way if clock.now >= times[sent.metadata.dst_node_id - 1]
        ]

    list(in_order(FakeGrid(at(5.0, 20.0)), outgoing(2), window=2, timeout=100.0))
    assert clock.pauses[:3] == [0.02, 0.04, 0.08]
    assert max(clock.pauses) == 1.0
    assert clock.pauses.count(0.02) == 2
    assert clock.now < 21.5


def test_the_grid_in_one_process_runs_one_message_at_a_time_and_never_waits(clock: Clock) -> None:
    running: list[int] = []

    def app(sent: Message, _: object) -> Message:
        running.append(sent.metadata.dst_node_id - 1)
        return reply_to(sent)

    grid = InlineGrid(app, num_clients=9)
    for client, reply in in_order(grid, outgoing(9), window=4, timeout=1.0):
        assert sender(reply) == client == running[-1], "the next one runs when this one has been taken"
    assert clock.pauses == []


def test_one_deadline_of_the_whole_round_whoever_was_sent_when(clock: Clock) -> None:
    """The first two never answer and hold both places; the third is sent then, and the last never is."""
    grid = FakeGrid(lambda under_way: [reply_to(sent) for sent in under_way if sent.metadata.dst_node_id == 3])
    taken = list(in_order(grid, outgoing(6), window=2, timeout=40.0, longest=60.0))
    assert [(client, sender(reply)) for client, reply in taken] == [
        (0, None), (1, None), (2, 2), (3, None), (4, None), (5, None)
    ]  # fmt: skip
    assert 60.0 <= clock.now < 61.5
    assert grid.pushed == [0, 1, 2, 3, 4], "after the deadline nobody is asked"


def test_what_has_come_by_the_deadline_counts_however_late_it_is_looked_at(clock: Clock) -> None:
    grid = FakeGrid(lambda under_way: map(reply_to, under_way))
    taken = in_order(grid, outgoing(3), window=3, timeout=5.0, longest=5.0)
    first = next(taken)
    clock.now = 100.0  # adding up the first took long
    assert [sender(reply) for _, reply in (first, *taken)] == [0, 1, 2]
