"""Every example in ``simulations/`` is valid, is in the README there, and runs."""

from pathlib import Path

import pytest

from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.engines.inline import simulate

FOLDER = Path(__file__).parents[1] / "simulations"
SHORTENED = (
    "rounds.num_rounds=1",
    "rounds.clients_per_round=2",
    "train.local_steps=1",
    "train.batch_size=4",
    "evaluate.max_examples=8",
    "compute.num_threads=1",
)
files = pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)


def smaller(experiment: Experiment) -> list[str]:
    """Return what makes the data small and the pretraining short, and replaces a model that is not installed here."""
    sources = {"data": experiment.data, "pretrain_data": experiment.pretrain_data}
    texts = [key for key, source in sources.items() if source and source.name == "docstrings"]
    changes = [f"{key}.max_per_package=16" for key in texts]
    changes += ["pretrain.num_steps=2"] if experiment.pretrain else []
    return changes + (["model.name=tiny"] if experiment.model.name == "minilm" else [])


@files
def test_an_example_is_named_as_its_file_and_documented(file: Path) -> None:
    assert config.load(file).name == file.stem
    assert f"| `{file.name}` |" in (FOLDER / "README.md").read_text()


@files
def test_a_shortened_round_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = f'output.directory="{tmp_path / "run"}"'
    summary = simulate(config.load(file, [*SHORTENED, *smaller(config.load(file)), output]))
    assert (summary["num_rounds"], summary["num_failures"]) == (1, 0)
