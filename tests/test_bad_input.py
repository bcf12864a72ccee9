"""Whatever a caller gets wrong is one error that says what would be right, exit code 2, and nothing left behind."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedpeft.engines import start
from tests.conftest import TINY_VIT, merged
from tests.test_cli import BERT, Run, finished, run, text_table, write_texts

__all__ = ["run"]

DIGITS_TABLES: dict[str, dict[str, Any]] = {
    "unknown key": {"train": {"batchsize": 3}},
    "unknown table": {"trian": {"batch_size": 3}},
    "wrong type": {"train": {"batch_size": "big"}},
    "not finite": {"train": {"learning_rate": float("inf")}},
    "negative rank": {"adapter": {"rank": -2}},
    "unknown plug-in": {"adapter": {"name": "lorra"}},
    "idle setting": {"train": {"momentum": 0.9}},
    "target module": {"adapter": {"target_modules": ["q_lin"]}},
    "clients, examples": {"partition": {"num_clients": 10_000}},
    "empty client": {"partition": {"name": "quantity_skew", "num_clients": 20, "law": "exponential"}},
    "cohort": {"rounds": {"clients_per_round": 4}},
    "column": {"task": {"name": "sequence_classification"}},
    "model, task": {"model": {**BERT, "name": "tiny"}, "task": {"name": "image_classification"}},
    "no labels": {"partition": {"name": "natural"}},
    "num_heads": {"model": {"num_heads": 3}},
    "no folder": {"model": {"name": "pretrained", "path": "./no/such/model"}},
    "no package": {"data": {"name": "docstrings", "packages": ["numpie"]}},
}
SAYS = {
    "unknown key": "train.batchsize: unknown key; did you mean 'batch_size'?",
    "unknown table": "trian: unknown key; did you mean 'train'?",
    "wrong type": 'train.batch_size = "big": expected an integer >= 1',
    "not finite": "train.learning_rate = Infinity: expected a finite number > 0",
    "negative rank": "adapter.rank = -2: expected an integer >= 1",
    "unknown plug-in": "adapter.name: no adapter 'lorra'; did you mean 'lora'?",
    "idle setting": "train.momentum = 0.9: has no effect with optimizer 'adamw'",
    "target module": "ends in 'q_lin'; there are: attention.q_proj",
    "clients, examples": "partition.num_clients = 10000: at least 1 each make 10000 examples, and there are 430",
    "empty client": "the smallest client would get none of 430 examples",
    "cohort": "rounds.clients_per_round = 4: expected <= 3, the number of clients",
    "column": "no column 'text', which task.name = 'sequence_classification' needs; there are image, label",
    "model, task": "tiny bert serves sequence_classification, not image_classification",
    "no labels": "partition 'natural' needs the column 'client'; the data has image, label",
    "num_heads": "hidden_size = 16 is not a multiple of num_heads = 3",
    "no folder": "model.path = './no/such/model': no such folder",
    "no package": "'numpie' is not an installed package; did you mean 'numpy'?",
}
TEXT_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "no label": ({"data": {"label": None}}, "no column 'label', which task.name = 'sequence_classification' needs"),
    "label column": ({"data": {"label": "kid"}}, "no column 'kid' for data.label; the columns are"),
    "too long": ({"task": {"max_length": 4096}}, "task.max_length = 4096: the model reads at most 128 tokens"),
    "image model": (
        {"model": TINY_VIT["model"], "task": {"name": "sequence_classification"}},
        "tiny vit serves image_classification, not sequence_classification",
    ),
    "parquet": ({"data": {"path": "broken.parquet"}}, "broken.parquet: not readable as parquet"),
    "no file": ({"data": {"path": "none.csv"}}, "none.csv: no such file"),
    "pickle": ({"model": {"name": "pretrained", "path": "pickled"}}, "no model.safetensors there"),
}


def plain(value: Any) -> Any:
    """Leave out what is None, as TOML has no word for it."""
    return {key: plain(item) for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refuse(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a command that must be refused: one message, code 2, no file more or less than before."""
    monkeypatch.chdir(tmp_path)

    def check(arguments: Sequence[object], says: str) -> None:
        before = listing(tmp_path)
        said = run(*arguments)
        assert says in said.err
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("error: ")
        assert said.err.count("error: ") == 1
        assert "Traceback" not in said.err
        assert listing(tmp_path) == before
        assert not (tmp_path / "out").exists()

    return check


def write(folder: Path, table: dict[str, Any]) -> Path:
    path = folder / "experiment.toml"
    path.write_text(tomli_w.dumps(plain(table)))
    return path


@pytest.mark.parametrize("case", DIGITS_TABLES)
def test_an_experiment_that_cannot_run(refuse: Callable[..., None], tmp_path: Path, case: str) -> None:
    table = merged(TINY_VIT, DIGITS_TABLES[case])
    refuse(["simulate", write(tmp_path, table), "--out", "out"], SAYS[case])


@pytest.mark.parametrize("case", TEXT_TABLES)
def test_a_table_or_a_model_that_cannot_be_read(refuse: Callable[..., None], tmp_path: Path, case: str) -> None:
    changes, says = TEXT_TABLES[case]
    write_texts(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    table = merged(TINY_VIT, text_table(**changes))
    refuse(["simulate", write(tmp_path, table), "--out", "out"], says)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.batch_size", "override 'train.batch_size': expected key=value"),
        ("seed.deep=1", "override 'seed.deep=1': 'seed' is not a table"),
        ("train.batch_size=[1", "override 'train.batch_size=[1': the value is not valid TOML"),
        ("strategy.name=fedavgg", "strategy.name: no strategy 'fedavgg'; did you mean 'fedavg'?"),
    ],
)
def test_an_override_that_is_wrong(refuse: Callable[..., None], tmp_path: Path, override: str, says: str) -> None:
    refuse(["simulate", write(tmp_path, TINY_VIT), "--out", "out", "--set", override], says)


def test_a_file_that_is_not_there_or_not_toml(refuse: Callable[..., None], tmp_path: Path) -> None:
    refuse(["simulate", "none.toml", "--out", "out"], "none.toml: cannot be read: No such file")
    (tmp_path / "broken.toml").write_text("name = \n")
    refuse(["simulate", "broken.toml", "--out", "out"], "broken.toml: not valid TOML: Invalid value (at line 1")
    refuse(["list", "adaptor"], "no group 'adaptor'; did you mean 'adapter'?")


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A finished run, and the experiment file it came from."""
    write(tmp_path, merged(TINY_VIT, {"rounds": {"num_rounds": 1}}))
    return finished(tmp_path, rounds={"num_rounds": 1})


def test_a_run_directory_is_refused_before_anything_is_built(
    refuse: Callable[..., None], tmp_path: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("built before the run directory was looked at")

    monkeypatch.setattr(start, "assemble", built)
    simulate = ["simulate", "experiment.toml", "--out"]
    refuse([*simulate, earlier], "not empty; continue that run, overwrite it, or name another directory")
    refuse([*simulate, earlier, "--resume", "--overwrite"], "--resume and --overwrite contradict each other")
    refuse([*simulate, earlier, "--resume", "--set", "adapter.rank=3"], "adapter.rank = 3, the run began with 2")
    refuse([*simulate, "out", "--resume"], "out: no run to continue")
    refuse([*simulate, "experiment.toml"], "experiment.toml: the run directory cannot be made: Not a directory")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refuse([*simulate, "mine", "--overwrite"], "mine: holds files of something else than a run")


def test_inputs_that_cannot_be_answered(refuse: Callable[..., None], tmp_path: Path, earlier: Path) -> None:
    for name, text in (("list.jsonl", "[1]\n"), ("broken.jsonl", '{"image": [[[0.0]]]}\n{"image": \n')):
        (tmp_path / name).write_text(text)
    (tmp_path / "flat.jsonl").write_text(json.dumps({"image": [0.0, 1.0]}))
    refuse(["predict", earlier], "give either TEXT or --file")
    refuse(["predict", earlier, "a", "--file", "list.jsonl"], "give either TEXT or --file")
    refuse(["predict", earlier, "a", "b", "--text2", "c"], "--text2 goes with one TEXT, got 2")
    refuse(["predict", earlier, "--file", "list.jsonl", "--text2", "c"], "--text2 goes with one TEXT, got --file")
    refuse(["predict", earlier, "--file", "none.jsonl"], "none.jsonl: cannot be read")
    refuse(["predict", earlier, "--file", "list.jsonl"], "list.jsonl:1: expected an object, got list")
    refuse(["predict", earlier, "--file", "broken.jsonl"], "broken.jsonl:2: not JSON")
    refuse(["predict", earlier, "--file", "flat.jsonl"], "expected channels x height x width")
    refuse(["predict", earlier, "some words"], "input 0 has no 'image'")


def test_a_run_that_is_not_finished(refuse: Callable[..., None], tmp_path: Path, earlier: Path) -> None:
    for path in (earlier / "adapter").iterdir():
        path.unlink()
    (earlier / "adapter").rmdir()
    for command in (["predict", earlier, "a"], ["evaluate", earlier], ["export", earlier, "out"]):
        refuse(command, f"{earlier}: the run is not finished")
        refuse([*command[:1], "none", *command[2:]], "none: no run there: it has no config.toml")


def test_an_export_that_cannot_be_written(refuse: Callable[..., None], tmp_path: Path, earlier: Path) -> None:
    refuse(["export", earlier, earlier], "not empty; name another folder")
    refuse(["export", earlier, "experiment.toml"], "experiment.toml: cannot be written: Not a directory")
    refuse(["export", earlier, "experiment.toml/out", "--merge"], "out: cannot be written: Not a directory")


def test_a_method_that_cannot_be_merged(refuse: Callable[..., None], tmp_path: Path) -> None:
    path = finished(tmp_path, adapter={"name": "bottleneck", "size": 4}, rounds={"num_rounds": 1})
    refuse(["export", path, "out", "--merge"], "adapter Bottleneck cannot be merged into plain weights")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_written(refuse: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refuse(["simulate", write(tmp_path, TINY_VIT), "--out", "locked/run"], "cannot be made: Permission denied")
