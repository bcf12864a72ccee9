"""What a run-config says, and what is wrong with it."""

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedpeft.engines import apps
from fedpeft.errors import ConfigError
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
