"""A private run killed at any point goes on to the same bits, and never released more than it had charged."""

import importlib
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import pytest

from fedpeft.engines.forking import context
from fedpeft.engines.inline import simulate
from fedpeft.report.run_directory import RunDirectory
from tests.conftest import tiny

UNIFORM = {"name": "fedavg", "weighting": "uniform"}
SHARED = {"delta": 1e-5, "accountant": "rdp", "noise": "reproducible", "noise_multiplier": 2.0}
UNITS = {
    "client": {**SHARED, "unit": "client", "clip": 0.5, "adaptive": {}},
    "example": {**SHARED, "unit": "example", "clip": 1.0, "sample_rate": 0.1},
}
POINTS: dict[str, tuple[str, str, int, bool]] = {
    "before the charge": ("fedpeft.privacy.ledger:Ledger", "charge", 2, False),
    "while it is written": ("fedpeft.privacy.ledger:os", "fsync", 2, False),
    "after the charge": ("fedpeft.rounds.guard:Guard", "charge", 2, True),
    "in a client's training": ("fedpeft.client", "train_turn", 5, False),
    "before the noise": ("fedpeft.rounds.guard:Guard", "noised", 2, False),
    "after the noise": ("fedpeft.rounds.guard:Guard", "noised", 2, True),
    "before the record": ("fedpeft.report.run_directory:RunDirectory", "append", 3, False),
    "before the checkpoint": ("fedpeft.rounds.checkpoint", "save", 3, False),
    "while it is committed": ("fedpeft.rounds.checkpoint", "commit_folder", 3, False),
}
"""Point -> where, what is called there, at which call of it, and whether after it."""


def experiment(out: Path, unit: str, **output: Any) -> Any:
    return tiny(out, strategy=UNIFORM, privacy=UNITS[unit], output=output)


def die_in(out: str, unit: str, point: str) -> None:
    """Run until the point, in a process of its own, and end it as the machine's owner would."""
    place, name, nth, after = POINTS[point]
    module, _, inside = place.partition(":")
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, inside) if inside else owner
    original: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(1, 10_000))

    def last(*arguments: Any, **options: Any) -> Any:
        due = next(calls) == nth
        if due and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        done = original(*arguments, **options)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, name, last)
    simulate(experiment(Path(out), unit))


@pytest.fixture(scope="module")
def processes() -> SpawnContext | ForkServerContext:
    return context()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return {unit: simulate(experiment(folder / unit, unit)) for unit in UNITS}


@pytest.mark.parametrize(
    ("unit", "point"),
    [*(("client", point) for point in POINTS), ("example", "in a client's training"), ("example", "before the record")],
)
def test_a_killed_run_ends_as_if_nothing_had_been(
    tmp_path: Path, unit: str, point: str, processes: SpawnContext | ForkServerContext, whole: dict[str, dict[str, Any]]
) -> None:
    out = tmp_path / "run"
    victim = processes.Process(target=die_in, args=(str(out), unit, point))
    victim.start()
    victim.join(120)
    assert victim.exitcode == -signal.SIGKILL

    run = RunDirectory.open(out)
    released = len(run.records()) - 1 + (point in ("after the noise", "before the record"))
    assert len(run.ledger.charges()) >= released
    resumed = simulate(experiment(out, unit, if_exists="resume"))

    assert resumed["adapter_digest"] == whole[unit]["adapter_digest"]
    assert resumed["privacy"] == whole[unit]["privacy"]
    assert [charge.round for charge in run.ledger.charges()] == [1, 2, 3]
