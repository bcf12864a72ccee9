"""Plans made from public examples, over whole experiments, and what is refused of them."""

from pathlib import Path
from typing import Any

import pytest

from fedpeft.engines.inline import simulate
from fedpeft.errors import ConfigError, DataError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.training.workbench import assemble
from tests.conftest import PUBLIC, tiny

CALIBRATED = ["corda", "lora_ga"]


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_run_is_planned_from_public_examples_and_trains(name: str, tmp_path: Path) -> None:
    simulate(tiny(tmp_path / "run", adapter={"name": name, "rank": 2}, **PUBLIC))

    records = RunDirectory.open(tmp_path / "run").records()
    assert len(records) == 4
    assert records[-1].train_loss is not None
    assert records[1].train_loss is not None
    assert records[-1].train_loss < records[1].train_loss


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_plan_depends_on_the_examples(name: str) -> None:
    hashes = {
        assemble(
            tiny(adapter={"name": name, "rank": 2}, **{**PUBLIC, "calibration": {"num_examples": number}})
        ).adapted.plan.hash
        for number in (4, 12, 12)
    }
    assert len(hashes) == 2


def test_an_adapter_that_needs_examples_says_what_to_add() -> None:
    with pytest.raises(ConfigError, match=r"'lora_ga' is planned from examples; add \[calibration\] and"):
        assemble(tiny(adapter={"name": "lora_ga", "rank": 2}))


def test_examples_that_no_plan_looks_at_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[calibration\] has no effect with adapter 'lora'"):
        assemble(tiny(**PUBLIC))


def test_public_examples_of_other_labels_are_refused() -> None:
    other = {**PUBLIC, "calibration_data": {"name": "digits", "classes": [3, 4]}}
    with pytest.raises(DataError, match="calibration_data: labels"):
        assemble(tiny(adapter={"name": "corda", "rank": 2}, **other))


def test_a_run_that_goes_on_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tiny(tmp_path / "run", adapter={"name": "corda", "rank": 2}, **PUBLIC))

    def never(*_: Any) -> None:
        raise AssertionError("planned again")

    monkeypatch.setattr("fedpeft.training.adapted.make_plan", never)
    output = {"output": {"if_exists": "resume"}}
    simulate(tiny(tmp_path / "run", adapter={"name": "corda", "rank": 2}, **PUBLIC, **output))
