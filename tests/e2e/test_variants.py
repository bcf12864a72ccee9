"""The same federation with other parts: every adapter with every strategy, other codecs, evaluation on clients."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fedpeft
from fedpeft import plugins
from fedpeft.engines.inline import simulate
from fedpeft.errors import DataError, UnsupportedError
from fedpeft.inference import finished_bench
from fedpeft.report.export import read_slots
from fedpeft.training.workbench import assemble
from tests.conformance.compatibility import accepted, refused, told
from tests.conftest import needed, tiny
from tests.e2e.test_inline import digest, lines

ROOT = Path(fedpeft.__file__).parent
PAIRS = [(adapter, strategy) for adapter in plugins.names("adapter") for strategy in plugins.names("strategy")]


def test_the_sweep_covers_the_folders() -> None:
    files = {
        folder: sum(1 for path in (ROOT / folder).glob("*.py") if re.search(r"^def make\(", path.read_text(), re.M))
        for folder in ("adapters", "strategies")
    }
    assert len(set(PAIRS)) == files["adapters"] * files["strategies"] >= 20 * 22
    assert {*accepted(), *refused()} == set(PAIRS)


@pytest.mark.parametrize(("adapter", "strategy"), PAIRS)
def test_each_adapter_runs_with_each_strategy_or_is_refused(tmp_path: Path, adapter: str, strategy: str) -> None:
    """A refused pair says so before anything is written; an accepted one trains and changes what it sent."""
    experiment = tiny(
        tmp_path / "run",
        **needed(
            strategy,
            adapter={"name": adapter},
            partition={"num_clients": 5},
            rounds={"num_rounds": 1},
            train={"local_steps": 1},
        ),
    )
    if (adapter, strategy) in refused():
        with pytest.raises(UnsupportedError) as found:
            simulate(experiment)
        assert told(found.value) == refused()[adapter, strategy]
        assert not (tmp_path / "run").exists()
        return
    summary = simulate(experiment)
    bench = finished_bench(tmp_path / "run")
    assert (read_slots(tmp_path / "run" / "adapter") - bench.adapted.initial).norm() > 0
    assert bench.adapted.task.metrics(bench.score(bench.held_out)) == summary["last"]["metrics"]


def test_fedprox_keeps_clients_closer_to_what_they_received(tmp_path: Path) -> None:
    sgd = {"optimizer": "sgd", "learning_rate": 0.1, "local_steps": 8}
    distance = {}
    for name, strategy in (("avg", {"name": "fedavg"}), ("prox", {"name": "fedprox", "mu": 2.0})):
        experiment = tiny(tmp_path / name, strategy=strategy, train=sgd, rounds={"num_rounds": 1})
        simulate(experiment)
        distance[name] = (read_slots(tmp_path / name / "adapter") - assemble(experiment).adapted.initial).norm()
    assert 0 < distance["prox"] < 0.9 * distance["avg"]


def test_half_the_bytes_in_bfloat16(tmp_path: Path) -> None:
    for name, codec in (("full", "none"), ("half", "bfloat16")):
        simulate(tiny(tmp_path / name, codec={"name": codec}, codec_down={"name": codec}, rounds={"num_rounds": 1}))
    payload = 4 * read_slots(tmp_path / "full" / "adapter").num_elements
    full, half = (lines(tmp_path / name)[1] for name in ("full", "half"))
    for key in ("bytes_up", "bytes_down"):
        assert full[key] - half[key] == pytest.approx(3 * payload / 2, rel=0.01)


def test_clients_evaluate_on_what_they_kept_from_training(tmp_path: Path) -> None:
    experiment = tiny(tmp_path / "run", evaluate={"on_clients": True, "client_fraction": 0.25})
    simulate(experiment)
    bench = assemble(experiment)
    for client in range(3):
        train, held = bench.client_examples(client)
        assert len(train) + len(held) == bench.shares.sizes()[client]
        assert len(held) == int(0.25 * bench.shares.sizes()[client])
    row = lines(tmp_path / "run")[-1]
    assert row["client_metrics"] == pytest.approx(_pooled(bench, tmp_path / "run"))


def _pooled(bench: Any, run: Path) -> dict[str, float]:
    """Evaluate the final adapter on all clients' held-out examples put together."""
    bench.adapted.attached.write(read_slots(run / "adapter"))
    model = bench.adapted.attached.model
    rows = [row for client in range(3) for row in bench.client_examples(client)[1]]
    with torch.inference_mode():
        batch = bench.adapted.task.collate(rows)
        logits = model(pixel_values=batch["pixel_values"]).logits
    labels = batch["labels"]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return {"loss": loss.item(), "accuracy": (logits.argmax(1) == labels).float().mean().item()}


def test_a_client_with_a_single_example_cannot_keep_one(tmp_path: Path) -> None:
    bench = assemble(
        tiny(
            tmp_path / "run",
            evaluate={"on_clients": True},
            partition={"name": "iid", "num_clients": 300},
        )
    )
    with pytest.raises(DataError, match=r"holds 1 example.*at least 2"):
        bench.client_examples(299)


def test_evaluation_every_few_rounds_still_covers_the_last(tmp_path: Path) -> None:
    simulate(tiny(tmp_path / "run", evaluate={"every": 2}))
    assert [bool(row["metrics"]) for row in lines(tmp_path / "run")] == [True, False, True, True]
    simulate(tiny(tmp_path / "each"))
    assert digest(tmp_path / "run") == digest(tmp_path / "each")


def test_bfloat16_compute_keeps_the_adapter_in_float32(tmp_path: Path) -> None:
    summary = simulate(tiny(tmp_path / "run", compute={"precision": "bfloat16"}))
    slots = read_slots(tmp_path / "run" / "adapter")
    assert {spec.dtype for spec in slots.manifest()} == {"float32"}
    simulate(tiny(tmp_path / "full"))
    assert digest(tmp_path / "run") != digest(tmp_path / "full")
    exact = json.loads((tmp_path / "full" / "summary.json").read_text())
    assert summary["last"]["metrics"]["loss"] == pytest.approx(exact["last"]["metrics"]["loss"], rel=0.05)
