"""Where the time of each round went, and what share of the machine's arithmetic was used.

Phases, idleness and the rest, which is Python between the phases, add up to the time that passed: of this process and,
where there are workers, of all of these together.
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

_NAMES = {"wait": "idle"}
_REST = "other"


@final
class ProfileWatcher(Watcher):
    """Lets another watcher look on, and says after each round where its time went."""

    def __init__(self, inner: Watcher, clock: Clock, write: Callable[[str], None]) -> None:
        self._inner, self._clock, self._write = inner, clock, write
        self._mark = time.perf_counter()
        self._all: dict[str, dict[str, float]] = {}
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
        accounts, elements = self._accounts()
        for who, seconds in accounts.items():
            self._write(f"  profile of round {record.round}{who and ', '}{who}: {_words(seconds)}")
        if not record.clients:
            return
        self._elements += elements
        for who, seconds in accounts.items():
            kept = self._all.setdefault(who, {})
            for name, value in seconds.items():
                kept[name] = kept.get(name, 0.0) + value

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Hand on, then tell of all rounds together, and of the arithmetic."""
        self._inner.finished(summary)
        for who, seconds in self._all.items():
            whole = sum(seconds.values())
            self._write(f"profile, all rounds of training{who and ', '}{who}, {as_seconds(whole)}:")
            for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
                self._write(f"  {name:<18}{value:>10.2f} s{value / whole:>8.1%}")
        busy = sum(seconds.get("forward-backward", 0.0) for seconds in self._all.values())
        if (speed := self._clock.speed) is not None and busy:
            rate = speed.flops_per_element * self._elements / busy
            self._write(
                f"  forward and backward at {rate / 1e9:.1f} GFLOP/s a process, {rate / speed.peak:.0%} of the "
                f"{speed.peak / 1e9:.1f} that a large matrix product reaches here"
            )

    def close(self) -> None:
        """Hand on."""
        self._inner.close()

    def _accounts(self) -> tuple[dict[str, dict[str, float]], int]:
        """Return where the time since the last call went, of this process and of the workers, and the elements."""
        now = time.perf_counter()
        (own, elements), theirs = self._clock.take(), self._clock.take_others()
        passed, self._mark = now - self._mark, now
        if not (workers := self._clock.others.num_watched):
            return {"": _with_rest(own, passed)}, elements
        return {"server": _with_rest(own, passed), f"{workers} workers": _with_rest(theirs, workers * passed)}, elements


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


def _with_rest(seconds: Mapping[str, float], passed: float) -> dict[str, float]:
    """Add what nothing accounts for."""
    spent = {_NAMES.get(name, name): value for name, value in seconds.items()}
    return {**spent, _REST: max(0.0, passed - sum(spent.values()))}


def _words(seconds: Mapping[str, float]) -> str:
    whole = sum(seconds.values()) or 1.0
    largest = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.2f} s ({value / whole:.0%})" for name, value in largest)
