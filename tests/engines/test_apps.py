"""What a run-config says, and what is wrong with it."""

import logging
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from fedpeft.engines import apps
from fedpeft.errors import ConfigError, InputError
from fedpeft.privacy.own import Lifetime
from tests.conftest import tiny


def context(experiment: str = "tiny.toml", override: str = "") -> Context:
    run_config = {"experiment": experiment, "override": override}
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(tiny().to_toml())
    return tmp_path


def test_words_are_split_as_a_shell_would(folder: Path) -> None:
    override = "train.batch_size=8 output.directory='a folder' data.classes='[0, 1]'"
    experiment = apps._experiment(folder, context(override=override))
    assert experiment.train.batch_size == 8
    assert experiment.output.directory == "a folder"
    assert experiment.data.table()["classes"] == [0, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (context(override="train.batch_size='8"), "run-config override.*No closing quotation"),
        (context(override="train.batch=8"), "train.batch"),
        (context(experiment="other.toml"), "other.toml: cannot be read"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, given: Context, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        apps._experiment(folder, given)


PRIVATE = tiny(
    strategy={"name": "fedavg", "weighting": "uniform"},
    privacy={"unit": "example", "noise_multiplier": 1.0, "delta": 1e-3, "clip": 1.0, "sample_rate": 0.2},
)


def node(**config: Any) -> Context:
    named = {name.replace("_", "-"): value for name, value in config.items()}
    return Context(run_id=1, node_id=1, node_config={"partition-id": 2, **named}, state=RecordDict(), run_config={})


def test_a_node_without_a_trainer_keeps_the_ledger_that_its_config_names(tmp_path: Path) -> None:
    found = apps._ledger(node(privacy_state=str(tmp_path), lifetime_epsilon=4, lifetime_delta=1e-5), PRIVATE)
    assert found is not None
    assert (found.folder, found.client, found.experiment) == (tmp_path, 2, PRIVATE.hash)
    assert found.lifetime == Lifetime(epsilon=4.0, delta=1e-5)
    alone = apps._ledger(node(privacy_state=str(tmp_path)), PRIVATE)
    assert alone is not None
    assert alone.lifetime is None


def test_a_private_experiment_on_a_node_without_a_ledger_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert apps._ledger(node(), tiny()) is None
        assert not caplog.records
        assert apps._ledger(node(), PRIVATE) is None
    assert "counted by the server alone; set privacy-state" in caplog.text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"privacy_state": "here"}, "absolute path"),
        ({"lifetime_epsilon": 1.0, "lifetime_delta": 1e-5}, "without privacy-state"),
        ({"privacy_state": "/x", "lifetime_epsilon": 1.0}, "both or neither"),
        ({"privacy_state": "/x", "lifetime_epsilon": "1", "lifetime_delta": 1e-5}, "expected a number"),
    ],
)
def test_half_a_ledger_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        apps._ledger(node(**config), PRIVATE)
