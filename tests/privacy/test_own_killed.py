"""A client's own ledger under kill -9: fifty times at drawn points, in a process of its own each time."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fedpeft.privacy import ledger as ledgers
from fedpeft.privacy import own as owns
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.own import OwnLedger, spent_by_client
from tests.privacy.test_ledger import charge, of

KILLS = 50
POINTS = ("before", "terms", "truncate", "fsync", "folder", "after", "none")


def dying(number: int, ledger: OwnLedger, made: Any, told: int) -> None:
    """Charge one round, write a byte once it may be released, and die at this time's point."""
    point = POINTS[number % len(POINTS)]

    def dies(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if point == "before":
        dies()
    if point == "terms":
        owns.write_atomic = dies  # type: ignore[assignment]
    if point == "fsync":
        ledgers.os.fsync = dies  # type: ignore[assignment]
    if point == "folder":
        ledgers.flush_folder = dies  # type: ignore[assignment]
    if point == "truncate":
        ledgers._line = dies  # type: ignore[assignment]
    ledger.charge(charge(number, 3), made)
    if point == "after":
        dies()
    os.write(told, b".")


@pytest.mark.parametrize("unit", ["example", "client"])
def test_epsilon_never_falls_and_is_never_below_what_was_released(tmp_path: Path, unit: str) -> None:
    made = of(unit, spare_rounds=KILLS)
    ledger = OwnLedger(folder=tmp_path, experiment="a" * 40, client=3)
    read, told = os.pipe()
    released, killed, spent = 0, 0, 0.0
    for number in range(1, KILLS + 1):
        if not (child := os.fork()):  # pragma: no cover - the other process
            dying(number, ledger, made, told)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        os.set_blocking(read, False)
        released += len(os.read(read, 1)) if not os.WIFSIGNALED(status) else 0

        charges = [len(Ledger(path).charges()) for path in tmp_path.glob("*.jsonl")]
        now = spent_by_client(tmp_path, delta=1e-5).get(3, {}).get(unit, 0.0)
        assert now >= spent
        assert sum(charges) >= released
        assert now >= made.spent(released) * (1 - 1e-12)
        spent = now
    assert killed > KILLS / 2
    assert released >= KILLS // len(POINTS)
