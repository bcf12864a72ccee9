"""What is sent to Flower: two thin apps, which are those of the repository, and one experiment."""

import tomllib
from pathlib import Path
from typing import Literal

import pytest

from fedpeft import __version__, config
from fedpeft.engines.bundle import app_source, write_bundle
from tests.conftest import tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("side", ["server", "client"])
def test_the_repository_holds_the_same_apps(side: Literal["server", "client"], tmp_path: Path) -> None:
    write_bundle(tmp_path, tiny())
    assert (ROOT / side / "app.py").read_text() == app_source(side) == (tmp_path / side / "app.py").read_text()


def test_the_repository_and_the_bundle_name_the_same_apps_and_settings(tmp_path: Path) -> None:
    write_bundle(tmp_path, tiny())
    ours, theirs = (
        tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"] for folder in (ROOT, tmp_path)
    )
    assert ours["components"] == theirs["components"]
    assert list(ours["config"]) == list(theirs["config"]) == ["experiment", "override"]
    assert (ROOT / "simulations" / ours["config"]["experiment"]).is_file()


def test_the_experiment_arrives_as_it_was(tmp_path: Path) -> None:
    experiment = tiny(tmp_path / "run", name="a.b-c_1", model={"dropout": 0.25})
    write_bundle(tmp_path, experiment)
    described = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    arrived = config.load(tmp_path / "simulations" / described["tool"]["flwr"]["app"]["config"]["experiment"])
    assert arrived == experiment
    assert arrived.hash == experiment.hash
    assert described["project"]["version"] == __version__
