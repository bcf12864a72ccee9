"""A federation in one process, from the experiment to the run directory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft import seeds
from fedpeft.config import Experiment
from fedpeft.engines.inline import simulate
from fedpeft.report.export import read_slots
from fedpeft.tasks.base import Batch
from fedpeft.training.workbench import assemble
from tests.conftest import tiny


def digest(run: Path) -> str:
    return read_slots(run / "adapter").digest()


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the rounds without their wall times, the only thing two equal runs may differ in."""
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_a_run_leaves_everything_behind(tmp_path: Path) -> None:
    summary = simulate(tiny(tmp_path / "run"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.toml", "rounds.jsonl", "summary.json", "partition.json", "checkpoints", "adapter", "report.html",
        "fence.json", "run.id",
    }  # fmt: skip
    rows = lines(tmp_path / "run")
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert all(row["clients"] == [0, 1, 2] and not row["failures"] for row in rows[1:])
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["adapter_digest"] == digest(tmp_path / "run")


def test_bytes_are_those_of_the_adapter_and_a_small_header(tmp_path: Path) -> None:
    experiment = tiny(tmp_path / "run", rounds={"num_rounds": 1})
    simulate(experiment)
    payload = 4 * assemble(experiment).adapted.initial.num_elements
    (row,) = lines(tmp_path / "run")[1:]
    for key in ("bytes_up", "bytes_down"):
        assert 3 * payload < row[key] < 3 * (payload + 4096)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        simulate(tiny(tmp_path / name, seed=seed))
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_global_generators_do_not_matter_and_are_left_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        simulate(tiny(tmp_path / name))
        assert torch.equal(before, torch.get_rng_state())
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


@pytest.mark.parametrize("window", [1, 2, 7])
def test_the_window_of_messages_changes_nothing(tmp_path: Path, window: int) -> None:
    simulate(tiny(tmp_path / "a", rounds={"window": 16}))
    simulate(tiny(tmp_path / "b", rounds={"window": window}))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_fewer_clients_are_drawn_when_asked(tmp_path: Path) -> None:
    simulate(tiny(tmp_path / "run", rounds={"clients_per_round": 2, "num_rounds": 6}))
    cohorts = [tuple(row["clients"]) for row in lines(tmp_path / "run")[1:]]
    assert all(len(cohort) == 2 for cohort in cohorts)
    assert len(set(cohorts)) > 1


def test_one_client_and_one_epoch_is_plain_training(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "partition": {"name": "iid", "num_clients": 1},
        "train": {"local_steps": None, "local_epochs": 1},
        "rounds": {"num_rounds": 1},
    }
    experiment = tiny(tmp_path / "run", **changes)
    simulate(experiment)
    federated, plain = read_slots(tmp_path / "run" / "adapter"), _plain_training(experiment)
    for name, tensor in plain.items():
        torch.testing.assert_close(federated[name], tensor, atol=1e-6, rtol=0)


def _plain_training(experiment: Experiment) -> dict[str, torch.Tensor]:
    """Train as anybody would without fedpeft's loop: shuffled batches, AdamW, mean cross-entropy."""
    bench = assemble(experiment)
    model, task = bench.adapted.attached.model, bench.adapted.task
    parameters = bench.adapted.attached.parameters()
    rows, _ = bench.client_examples(0)
    seed = seeds.derive(experiment.seed, "train", 1, 0)
    order = _shuffled(len(rows), experiment, seed)
    optimizer = torch.optim.AdamW(parameters.values(), lr=experiment.train.learning_rate, weight_decay=0.0)
    model.train()
    with seeds.isolated(seed, "dropout"):
        for indices in order:
            batch: Batch = task.collate([rows[index] for index in indices])
            loss = model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _shuffled(num_rows: int, experiment: Experiment, seed: int) -> list[list[int]]:
    from fedpeft.data.batches import batch_indices

    return list(batch_indices(num_rows, experiment.train.batch_size, seed=seed, epochs=1, steps=None))
