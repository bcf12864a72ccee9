"""Where time goes, by phase: a clock that code finds through its context, so that nothing is passed and nothing kept.

Where no clock runs, a phase costs one look-up.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Literal, ParamSpec, TypeVar, final

__all__ = ["Clock", "Phase", "Spans", "Speed", "current", "phase", "running", "timed"]

Phase = Literal[
    "load", "data", "forward-backward", "optimizer", "privacy", "codec", "aggregate", "evaluate", "record", "wait"
]
"""``wait`` is for worker processes, whose own time is told by their own clocks and by ``Spans``."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_OFF = nullcontext()


@final
@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the arithmetic costs, and what the machine could do."""

    flops_per_element: float
    """Floating-point operations of a forward and a backward pass, for each scalar of the model's first input."""
    peak: float
    """Floating-point operations a second of one process in a large matrix product."""


@final
class Spans:
    """What others do between their answers: seconds of each state up to any moment. Threads may tell it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[int, tuple[str | None, float]] = {}
        self._seconds: dict[str, float] = {}

    @property
    def num_watched(self) -> int:
        """How many have been told of."""
        return len(self._states)

    def turn(self, who: int, state: str | None) -> None:
        """Say what one of them does from now on; None where it tells of its time itself."""
        with self._lock:
            self._book(who)
            self._states[who] = (state, time.perf_counter())

    def take(self) -> dict[str, float]:
        """Return seconds by state since the last time, of those that are in one still too."""
        with self._lock:
            for who in self._states:
                self._book(who)
            taken, self._seconds = self._seconds, {}
            return taken

    def _book(self, who: int) -> None:
        state, since = self._states.get(who, (None, 0.0))
        now = time.perf_counter()
        if state is not None:
            self._seconds[state] = self._seconds.get(state, 0.0) + now - since
        self._states[who] = (state, now)


@final
class Clock:
    """Seconds by phase; a phase inside another is taken out of it, so that the sum is the time that passed in any."""

    def __init__(self, *, settle: Callable[[], None] | None = None) -> None:
        """``settle`` waits for a device that works on its own, so that its time is counted where it was asked for."""
        self.settle = settle
        self.speed: Speed | None = None
        """What is known of the arithmetic, if somebody measured it."""
        self.others = Spans()
        """What other processes do that work for this one."""
        self._seconds: dict[str, float] = {}
        self._theirs: dict[str, float] = {}
        self._elements = 0
        self._open: list[str] = []
        self._mark = 0.0

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the time inside the block."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def count(self, elements: int) -> None:
        """Count scalars that a model was given to train on."""
        self._elements += elements

    def add(self, seconds: Mapping[str, float], elements: int) -> None:
        """Add what another process counted."""
        for name, value in seconds.items():
            self._theirs[name] = self._theirs.get(name, 0.0) + value
        self._elements += elements

    def take_others(self) -> dict[str, float]:
        """Return other processes' seconds by phase since the last time: what they counted, loading and idleness."""
        taken, self._theirs = self._theirs, {}
        for name, value in self.others.take().items():
            taken[name] = taken.get(name, 0.0) + value
        return taken

    def take(self) -> tuple[dict[str, float], int]:
        """Return this process's seconds by phase, all elements since the last time, and begin anew."""
        self._turn()
        taken = (self._seconds, self._elements)
        self._seconds, self._elements = {}, 0
        return taken

    def _turn(self) -> None:
        """Book what passed since the last turn on the innermost phase."""
        if self.settle is not None:
            self.settle()
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._mark
        self._mark = now


_CLOCK: ContextVar[Clock | None] = ContextVar("fedpeft_clock", default=None)


@contextmanager
def running(clock: Clock | None) -> Iterator[None]:
    """Let code inside the block find this clock, or none."""
    token = _CLOCK.set(clock)
    try:
        yield
    finally:
        _CLOCK.reset(token)


def current() -> Clock | None:
    """Return the clock that runs here, if one does."""
    return _CLOCK.get()


def phase(name: Phase) -> AbstractContextManager[None]:
    """Count the time inside the block, where a clock runs."""
    clock = _CLOCK.get()
    return _OFF if clock is None else clock.phase(name)


def timed(name: Phase) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Count the time inside a function, where a clock runs."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def counted(*arguments: _P.args, **options: _P.kwargs) -> _R:
            with phase(name):
                return function(*arguments, **options)

        return counted

    return decorate
