"""The card's head is YAML whatever the base is called, and its code names that base."""

import ast
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from fedpeft.config import Experiment
from fedpeft.report.card import Base, model_card
from fedpeft.report.record import RoundRecord
from fedpeft.report.summary import summarise

HUB = Base(reference="org/model", revision="abc123", kind="sequence_classification", label_names=("bad", "good"))


def _card(experiment: Experiment, records: list[RoundRecord], base: Base = HUB, *, in_peft_format: bool = True) -> str:
    summary = summarise(experiment, records, adapter_digest="d")
    return model_card(experiment, summary, base=base, in_peft_format=in_peft_format, commands=["fedpeft x"])


def _python(card: str) -> str:
    return card.split("```python\n")[1].split("```", maxsplit=1)[0]


def test_the_front_matter_names_library_and_hub_base(experiment: Experiment, records: list[RoundRecord]) -> None:
    head = _card(experiment, records).split("---\n")[1].splitlines()
    assert "library_name: peft" in head
    assert json.loads(next(line for line in head if line.startswith("base_model: "))[12:]) == "org/model"


def test_a_local_base_is_no_hub_id_of_the_front_matter(experiment: Experiment, records: list[RoundRecord]) -> None:
    assert "base_model" not in _card(experiment, records, replace(HUB, reference="/models/a", revision=None))


@pytest.mark.parametrize(
    ("kind", "loader"),
    [
        ("sequence_classification", "AutoModelForSequenceClassification"),
        ("causal_lm", "AutoModelForCausalLM"),
        ("image_classification", "AutoModelForImageClassification"),
    ],
)
def test_the_code_is_python_that_loads_base_and_adapter(
    experiment: Experiment, records: list[RoundRecord], kind: str, loader: str
) -> None:
    code = _python(_card(experiment, records, replace(HUB, kind=kind, reference='it\'s "odd"')))
    ast.parse(code)
    assert f"base = {loader}.from_pretrained(" in code
    assert "revision='abc123', num_labels=2" in code


def test_what_peft_cannot_load_is_not_said_to_be_peft(experiment: Experiment, records: list[RoundRecord]) -> None:
    card = _card(experiment, records, in_peft_format=False)
    assert "library_name" not in card
    assert "PeftModel" not in card
    assert "fedpeft x" in card


def test_metrics_settings_and_cost_are_in_tables(experiment: Experiment, records: list[RoundRecord]) -> None:
    card = _card(experiment, records)
    assert "| first (round 0) | accuracy | 0.25 |" in card
    assert "| last (round 3) | accuracy | 0.75 |" in card
    assert "Up 3 kB, down 6 kB, 6.5 s, 1 failed replies." in card
    assert "| train.learning_rate | 0.001 |" in card
    assert experiment.hash in card


def test_the_strategy_is_named_with_its_options(
    make_experiment: Callable[..., Experiment], records: list[RoundRecord]
) -> None:
    fair = make_experiment(strategy={"name": "lora_fair"})
    options = 'variant = "ridge", regularization = 0.01, weighting = "examples"'
    assert f"with the strategy `lora_fair` (`{options}`). The" in _card(fair, records)


def test_a_bar_in_a_value_does_not_break_the_table(experiment: Experiment, records: list[RoundRecord]) -> None:
    summary = summarise(experiment, records, adapter_digest="d") | {"versions": {"a|b": "1\n2"}}
    assert "| a\\|b | 1 2 |" in model_card(experiment, summary, base=HUB, in_peft_format=True)
