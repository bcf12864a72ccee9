"""Where the time of each round went, and what share of the machine's arithmetic was used.

All processes' seconds are added up and held against as many seconds as they had; what no phase accounts for is idle, or
Python between the phases.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from fedpeft.config import Experiment
from fedpeft.report.record import RoundRecord
from fedpeft.report.text import as_seconds
from fedpeft.report.watch import Watcher
from fedpeft.timing import Clock, running

__all__ = ["ProfileWatcher", "profiled"]

_REST = "idle or other"


@final
class ProfileWatcher(Watcher):
    """Lets another watcher look on, and says after each round where its time went."""

    def __init__(self, inner: Watcher, clock: Clock, write: Callable[[str], None]) -> None:
        self._inner, self._clock, self._write = inner, clock, write
        self._mark = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._capacity = 0.0
        self._elements = 0

    def started(self, experiment: Experiment, **figures: Any) -> None:
        """Hand on."""
        self._inner.started(experiment, **figures)

    def client_finished(self, round_number: int, client: int, *, ok: bool, bytes_up: int) -> None:
        """Hand on."""
        self._inner.client_finished(round_number, client, ok=ok, bytes_up=bytes_up)

    def round_finished(self, record: RoundRecord) -> None:
        """Hand on, then tell of the time since the last round, or since the start."""
        self._inner.round_finished(record)
        seconds, elements = self._clock.take()
        now = time.perf_counter()
        capacity, self._mark = max(1, record.worker_processes) * (now - self._mark), now
        seconds = _with_rest(seconds, capacity)
        self._write(f"  profile of round {record.round}: {_words(seconds, capacity)}")
        if record.clients:
            self._capacity += capacity
            self._elements += elements
            for name, value in seconds.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + value

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Hand on, then tell of all rounds together, and of the arithmetic."""
        self._inner.finished(summary)
        if not self._capacity:
            return
        self._write(f"profile, all rounds of training, {as_seconds(self._capacity)} of processes:")
        for name, value in sorted(self._seconds.items(), key=lambda item: -item[1]):
            self._write(f"  {name:<18}{value:>10.2f} s{value / self._capacity:>8.1%}")
        if (speed := self._clock.speed) is not None and (busy := self._seconds.get("forward-backward")):
            rate = speed.flops_per_element * self._elements / busy
            self._write(
                f"  forward and backward at {rate / 1e9:.1f} GFLOP/s a process, {rate / speed.peak:.0%} of the "
                f"{speed.peak / 1e9:.1f} that a large matrix product reaches here"
            )

    def close(self) -> None:
        """Hand on."""
        self._inner.close()


@contextmanager
def profiled(watcher: Watcher, experiment: Experiment, write: Callable[[str], None]) -> Iterator[Watcher]:
    """Run a clock inside the block, and yield the watcher that tells what it shows."""
    settle = None
    if experiment.compute.device != "cpu":
        import torch

        settle = torch.cuda.synchronize
    clock = Clock(settle=settle)
    with running(clock):
        yield ProfileWatcher(watcher, clock, write)


def _with_rest(seconds: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Leave out the server's waiting, when workers work, and add what nothing accounts for."""
    spent = {name: value for name, value in seconds.items() if name != "wait"}
    return {**spent, _REST: max(0.0, capacity - sum(spent.values()))}


def _words(seconds: Mapping[str, float], capacity: float) -> str:
    largest = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.2f} s ({value / capacity:.0%})" for name, value in largest)
