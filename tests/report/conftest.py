"""An experiment made of stand-in parts, and the records of a short run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpeft.config import Experiment, parse
from fedpeft.report.record import Failure, RoundRecord

PARTS = ("model", "data", "partition", "task", "adapter", "strategy", "codec")


@pytest.fixture
def make_experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    monkeypatch.syspath_prepend(Path(__file__).parent)

    def make(**tables: Any) -> Experiment:
        parts = {name: {"name": "third_party.part"} for name in PARTS}
        return parse({"name": "tiny", "seed": 7, **parts, **tables})

    return make


@pytest.fixture
def experiment(make_experiment: Callable[..., Experiment]) -> Experiment:
    return make_experiment()


@pytest.fixture
def records() -> list[RoundRecord]:
    first = RoundRecord(round=0, metrics={"loss": 1.2, "accuracy": 0.25}, seconds={"evaluate": 0.5})
    return [first, *(_record(number) for number in (1, 2, 3))]


def _record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        clients=(0, 2),
        failures=(Failure(client=2, reason="no reply in 5 s"),) if number == 2 else (),
        train_loss=1.0 / number,
        metrics={"loss": 1.1 / number, "accuracy": 0.25 * number},
        bytes_up=1000,
        bytes_down=2000,
        seconds={"train": 1.5, "evaluate": 0.5},
    )
