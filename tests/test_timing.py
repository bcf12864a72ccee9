"""The clock, on a time that is made up."""

import contextlib

import pytest

from fedpeft import timing
from fedpeft.timing import Clock, current, phase, running, timed


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set the time by its only entry."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_a_phase_within_another_is_taken_out_of_it(at: list[float]) -> None:
    clock = Clock()
    with running(clock):
        with phase("evaluate"):
            at[0] += 1.0
            with phase("data"):
                at[0] += 2.0
            at[0] += 4.0
        at[0] += 8.0
        with phase("data"):
            at[0] += 16.0
    assert clock.take() == ({"evaluate": 5.0, "data": 18.0}, 0)


def test_what_was_taken_is_not_told_again_in_the_middle_of_a_phase_either(at: list[float]) -> None:
    clock = Clock()
    with clock.phase("load"):
        at[0] += 1.0
        assert clock.take() == ({"load": 1.0}, 0)
        at[0] += 2.0
    assert clock.take() == ({"load": 2.0}, 0)


def test_an_error_closes_its_phase(at: list[float]) -> None:
    clock = Clock()
    with contextlib.suppress(ValueError), clock.phase("record"):
        at[0] += 1.0
        raise ValueError
    at[0] += 2.0
    assert clock.take() == ({"record": 1.0}, 0)


def test_a_function_may_be_a_phase(at: list[float]) -> None:
    @timed("codec")
    def work(seconds: float, *, more: float) -> str:
        """Take time."""
        at[0] += seconds + more
        return "done"

    clock = Clock()
    assert work(1.0, more=1.0) == "done"
    with running(clock):
        assert work(1.0, more=2.0) == "done"
    assert clock.take() == ({"codec": 3.0}, 0)
    assert (work.__name__, work.__doc__) == ("work", "Take time.")


def test_without_a_clock_nothing_is_counted_and_nothing_made(at: list[float]) -> None:
    assert current() is None
    assert phase("data") is phase("codec")
    with phase("data"), running(None):
        assert current() is None


def test_what_another_process_counted_is_kept_apart(at: list[float]) -> None:
    clock = Clock()
    clock.count(5)
    clock.add({"load": 1.0, "data": 2.0}, 7)
    clock.add({"load": 1.0}, 0)
    assert clock.take() == ({}, 12)
    assert clock.take_others() == {"load": 2.0, "data": 2.0}
    assert clock.take_others() == {}


def test_a_device_is_waited_for_wherever_a_phase_begins_or_ends(at: list[float]) -> None:
    def settle() -> None:
        at[0] += 1.0

    clock = Clock(settle=settle)
    with clock.phase("forward-backward"):
        at[0] += 10.0
    assert clock.take()[0] == {"forward-backward": 11.0}
