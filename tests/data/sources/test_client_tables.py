"""Each client's own table: read where it trains, held to the public one's labels, and needed by nobody else."""

from pathlib import Path
from typing import Any

import pytest

from fedpeft.data.base import OwnSource
from fedpeft.data.sources import client_tables
from fedpeft.engines.inline import simulate
from fedpeft.errors import ConfigError, DataError, InputError
from fedpeft.report.export import read_slots
from fedpeft.report.run_directory import RunDirectory
from fedpeft.training.workbench import assemble
from tests.conftest import tiny

WORDS = {"a": "apple avocado", "b": "banana berry", "c": "cherry citron"}


def table(path: Path, labels: str) -> None:
    rows = [f"{WORDS[label]} {number},{label}" for number, label in enumerate(labels)]
    path.write_text("\n".join(["t,l", *rows]) + "\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDPEFT_ROOT", str(tmp_path))
    table(tmp_path / "public.csv", "abcabc")
    for client, labels in enumerate(("aaaabb", "bbbbcc", "ccccaa")):
        table(tmp_path / f"client-{client}.csv", labels)
    return tmp_path


def source(**changes: Any) -> OwnSource:
    shared = {"path": "client-{client}.csv", "test_path": "public.csv", "text": "t", "label": "l"}
    return client_tables.make(client_tables.Options.model_validate({**shared, **changes}))


def experiment(out: Path | None, **changes: Any) -> Any:
    return tiny(
        out,
        **{
            "model": {"name": "tiny", "architecture": "bert", "hidden_size": 16, "num_layers": 1},
            "data": {
                "name": "client_tables",
                "path": "client-{client}.csv",
                "test_path": "public.csv",
                "text": "t",
                "label": "l",
            },
            "partition": {"name": "own", "num_clients": 3},
            "task": {"name": "sequence_classification", "max_length": 16},
            "train": {"local_steps": 2, "batch_size": 4, "learning_rate": 0.05},
            **changes,
        },
    )


def test_labels_are_the_public_tables_and_each_client_has_its_own_rows(folder: Path) -> None:
    splits = source().load(seed=1)
    assert splits.label_names == ("a", "b", "c")
    assert (len(splits.train), len(splits.test)) == (0, 6)
    assert splits.train.column_names == splits.test.column_names
    held = [source().own(client, splits, seed=1) for client in range(3)]
    assert [sorted(data["label"][:]) for data in held] == [[0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 2, 2], [0, 0, 2, 2, 2, 2]]
    assert held[1]["text"][0] == "banana berry 0"
    assert [len(source(max_train=4).own(client, splits, seed=1)) for client in range(3)] == [4, 4, 4]


def test_a_clients_damage_is_named(folder: Path) -> None:
    splits = source().load(seed=1)
    table(folder / "client-1.csv", "ab")
    (folder / "client-1.csv").write_text("t,l\nx,d\n")
    with pytest.raises(DataError, match=r"client-1\.csv: row 1: label 'd' is not in the held-out data, which has a, b"):
        source().own(1, splits, seed=1)
    (folder / "client-2.csv").unlink()
    with pytest.raises(DataError, match=r"client-2\.csv: no such file"):
        source().own(2, splits, seed=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "all.csv"}, "expected {client} in it"),
        ({"client": "c"}, "client = 'c' has no meaning here"),
        ({"test_fraction": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        source(**changes)


def test_a_federation_of_own_tables_runs_and_tells_nothing_of_what_they_hold(folder: Path) -> None:
    summary = simulate(experiment(folder / "run"))
    assert summary["num_failures"] == 0
    run = RunDirectory.open(folder / "run")
    assert all(record.train_loss is not None for record in run.records()[1:])
    assert run.partition() == [{"client": client, "num_examples": None, "labels": {}} for client in range(3)]
    assert "Partition" not in (folder / "run" / "report.html").read_text()
    assert simulate(experiment(folder / "again"))["adapter_digest"] == summary["adapter_digest"]


def test_the_server_needs_no_clients_table_and_a_client_no_others(folder: Path) -> None:
    for client in (0, 2):
        (folder / f"client-{client}.csv").unlink()
    bench = assemble(experiment(None))
    assert len(bench.client_examples(1)[0]) == 6
    summary = simulate(experiment(folder / "run", rounds={"num_rounds": 1}))
    assert summary["num_failures"] == 2
    reasons = [failure.reason for record in RunDirectory.open(folder / "run").records() for failure in record.failures]
    assert all("no such file" in reason for reason in reasons)


def test_what_does_not_go_together_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to deal; write partition\.name = 'own'"):
        assemble(experiment(None, partition={"name": "iid", "num_clients": 3}))
    with pytest.raises(DataError, match="partition 'own' deals nothing"):
        assemble(tiny(None, partition={"name": "own", "num_clients": 3}))
    with pytest.raises(InputError, match="clients_per_round = 4: expected <= 3"):
        assemble(experiment(None, rounds={"clients_per_round": 4}))


def test_worker_processes_read_the_clients_own_tables(folder: Path) -> None:
    simulate(experiment(folder / "one"))
    simulate(experiment(folder / "two", simulation={"workers": 2}))
    assert read_slots(folder / "two" / "adapter").digest() == read_slots(folder / "one" / "adapter").digest()
