"""Clients side by side: as close to each alone as float32 is, the same bits each time, and never silently otherwise."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fedpeft import plugins, server
from fedpeft.adapters.lora import Lora
from fedpeft.config import Experiment
from fedpeft.engines import stacking
from fedpeft.engines.inline import simulate
from fedpeft.engines.start import ready
from fedpeft.errors import ResumeError, UnsupportedError
from fedpeft.report.export import read_slots
from fedpeft.training.group import Group
from tests.conftest import merged, needed, tiny
from tests.e2e.test_inline import digest, lines
from tests.e2e.test_resume import StoppedError, stop_at
from tests.e2e.test_workers import same

TOLERANCE = 1e-5
BASE: dict[str, Any] = {
    "model": {"dropout": 0.0},
    "partition": {"name": "quantity_skew", "num_clients": 5},
    "train": {"local_steps": None, "local_epochs": 1, "batch_size": 16, "learning_rate": 3e-3},
    "rounds": {"num_rounds": 1},
}
"""Clients of unequal numbers of steps, whose last batches are short."""
PRIVACY: dict[str, Any] = {
    "unit": "example",
    "sample_rate": 0.2,
    "clip": 0.05,
    "noise_multiplier": 1.0,
    "delta": 1e-3,
    "noise": "reproducible",
}
SGD = {"optimizer": "sgd", "learning_rate": 0.05}
STRATEGIES: dict[str, dict[str, Any]] = {
    "dylora": {"adapter": {"rank": 4}},
    "dylora frozen": {"adapter": {"rank": 4}, "strategy": {"frozen": True}, "train": {"weight_decay": 0.1}},
    "fedex_lora": {"rounds": {"num_rounds": 2}},
    "fedprox": {"strategy": {"mu": 0.5}, "train": {"weight_decay": 0.05}},
    "fedsa_lora": {"rounds": {"num_rounds": 2}},
    "ffa_lora": {},
    "hetlora": {"adapter": {"rank": 4}, "strategy": {"client_rank": [1, 4, 2], "prune": 0.5}},
    "rolora": {"rounds": {"num_rounds": 2}},
    "scaffold": {"rounds": {"num_rounds": 2}},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"train": {**SGD, "momentum": 0.9, "weight_decay": 0.01}},
    "clipped": {"train": {**SGD, "max_grad_norm": 0.05}},
    "equal steps": {"train": {"local_epochs": 1, "local_steps": 5}},
    "feedback": {"codec": {"name": "int4"}, "feedback": {"up": True}, "train": SGD},
}


def run(out: Path, stack: int | str, *changes: dict[str, Any], workers: int = 1, **output: Any) -> Experiment:
    table: dict[str, Any] = BASE
    for change in changes:
        table = merged(table, change)
    own = {"compute": {"stack": stack}, "simulation": {"workers": workers}, "output": output}
    strategy = table.get("strategy", {"name": "fedavg"})
    rest = {key: value for key, value in merged(table, own).items() if key != "strategy"}
    return tiny(out, **merged(needed(strategy["name"], **rest), {"strategy": strategy}))


def chosen(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "stack.json").read_text())
    return found


def require_equal(out: Path, *changes: dict[str, Any], within: float = TOLERANCE) -> None:
    """Hold three clients side by side against one at a time, and see that they were."""
    for name, stack in (("alone", 1), ("three", 3)):
        simulate(run(out / name, stack, *changes))
    alone, three = (read_slots(out / name / "adapter") for name in ("alone", "three"))
    assert chosen(out / "three")["clients"] == 3
    assert {row["stack"] for row in lines(out / "three")[1:]} == {3}
    assert not any(row["failures"] for row in lines(out / "three"))
    assert max(float((alone[name] - three[name]).abs().max()) for name in alone) < within
    (first, *_), (second, *_) = (lines(out / name)[1:] for name in ("alone", "three"))
    assert second["train_loss"] == pytest.approx(first["train_loss"], abs=1e-5)


def test_the_sweep_covers_the_folder() -> None:
    assert len(plugins.names("adapter")) >= 20


@pytest.mark.parametrize("adapter", plugins.names("adapter"))
def test_each_adapter_trains_side_by_side_as_alone(tmp_path: Path, adapter: str) -> None:
    """None of the folder declares that it cannot; one that did would have to be left out here by name."""
    require_equal(tmp_path, {"adapter": {"name": adapter}, "train": SGD})


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_clients_half_of_a_strategy_is_its_own(tmp_path: Path, name: str) -> None:
    require_equal(tmp_path, {"strategy": {"name": name.split(maxsplit=1)[0]}}, STRATEGIES[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_optimizers_clipping_and_feedback_are_each_clients_own(tmp_path: Path, name: str) -> None:
    require_equal(tmp_path, SETTINGS[name])


@pytest.mark.parametrize("name", ["flat", "per_layer", "adamw", "dora", "dylora"])
def test_privacy_of_examples_clips_and_hides_as_alone(tmp_path: Path, name: str) -> None:
    """One round: reproducible noise is named by what it is added to, so a last bit makes the next round's another."""
    changes: dict[str, Any] = {
        "privacy": {**PRIVACY, "clipping": "per_layer" if name == "per_layer" else "flat"},
        "train": {"local_epochs": 1, **({} if name == "adamw" else SGD)},
        "strategy": {"name": "dylora" if name == "dylora" else "fedavg", "weighting": "uniform"},
        "adapter": {"name": "dora" if name == "dora" else "lora"},
    }
    for out, stack in (("alone", 1), ("three", 3)):
        simulate(run(tmp_path / out, stack, changes))
    alone, three = (read_slots(tmp_path / out / "adapter") for out in ("alone", "three"))
    assert chosen(tmp_path / "three")["clients"] == 3
    assert max(float((alone[slot] - three[slot]).abs().max()) for slot in alone) < TOLERANCE


def test_a_language_model_trains_side_by_side_as_alone(tmp_path: Path) -> None:
    texts = ["a short text", "one that is a good deal longer than the other", "and a third", "four", "five and six"]
    rows = "\n".join(["text", *(f"{text} {number}" for number, text in enumerate(texts * 8))])
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(rows + "\n", encoding="utf-8")
    llama = {"name": "tiny", "architecture": "llama", "num_layers": 2, "dropout": 0.0}
    changes: dict[str, Any] = {
        "model": {**llama, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32},
        "data": {
            "name": "table",
            "path": str(tmp_path / "train.csv"),
            "test_path": str(tmp_path / "test.csv"),
            "text": "text",
        },
        "task": {"name": "causal_lm", "text": "plain", "max_length": 64},
        "partition": {"name": "iid", "num_clients": 4},
        "train": {"batch_size": 3},
    }
    require_equal(tmp_path, changes)


DROPOUT: dict[str, Any] = {"model": {"dropout": 0.1}, "rounds": {"num_rounds": 3}}


def test_the_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    """With dropout, ragged clients and memories; five clients make groups of two, two and one."""
    changes = (DROPOUT, {"strategy": {"name": "scaffold"}})
    for name, workers in (("one", 1), ("two", 2)):
        simulate(run(tmp_path / name, 2, *changes, workers=workers))
    same(tmp_path / "two", tmp_path / "one")
    assert {row["stack"] for row in lines(tmp_path / "two")[1:]} == {2}


def test_a_run_that_goes_on_comes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured at the start is kept: a second measurement would choose otherwise here."""
    monkeypatch.setattr(stacking, "_measured", lambda bench, most: {1: 3.0, 2: 1.0, 4: 2.0})
    simulate(run(tmp_path / "whole", "auto", DROPOUT))
    with monkeypatch.context() as patch:
        stop_at(patch, server, "run_round", 2, before=False)
        with pytest.raises(StoppedError):
            simulate(run(tmp_path / "cut", "auto", DROPOUT))
    monkeypatch.setattr(stacking, "_measured", lambda bench, most: {1: 1.0})
    simulate(run(tmp_path / "cut", "auto", DROPOUT, if_exists="resume"))
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert chosen(tmp_path / "cut")["seconds"] == {"1": 3.0, "2": 1.0, "4": 2.0}
    (tmp_path / "cut" / "stack.json").unlink()
    with pytest.raises(ResumeError, match=r"stack\.json: it is not there"):
        simulate(run(tmp_path / "cut", "auto", DROPOUT, if_exists="resume"))


def test_the_measurement_at_the_start_is_kept_with_the_run(tmp_path: Path) -> None:
    simulate(run(tmp_path / "run", "auto"))
    found = chosen(tmp_path / "run")
    assert str(found["clients"]) in found["seconds"]
    assert all(value > 0 for value in found["seconds"].values())
    assert found["clients"] <= 5
    assert lines(tmp_path / "run")[1]["stack"] == found["clients"]


def test_groups_are_no_more_than_memory_and_the_workers_leave_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    monkeypatch.setattr(stacking, "_measured", lambda bench, number: most.append(number) or {1: 1.0})
    bench, directory, _ = ready(run(tmp_path / "run", "auto"), stacks=True)
    for drawn, workers, free in ((40, 1, 10**9), (40, 4, 10**9), (40, 1, 1)):
        monkeypatch.setattr(stacking, "kilobytes", lambda *_, free=free: free)
        stacking.stacking(bench, directory, drawn=drawn, workers=workers, resume=False)
    assert most == [40, 10, 1]


def test_a_method_that_declares_itself_alone_trains_so_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    simulate(run(tmp_path / "alone", 1))
    monkeypatch.setattr(Lora, "alone", lambda self: "for a test")
    with caplog.at_level(logging.WARNING):
        simulate(run(tmp_path / "run", 3))
    assert chosen(tmp_path / "run") == {"clients": 1, "reason": "for a test", "seconds": {}}
    assert digest(tmp_path / "run") == digest(tmp_path / "alone")
    assert lines(tmp_path / "run")[1]["stack"] == 1
    assert "compute.stack = 3: clients train one at a time: for a test" in caplog.text


def test_a_wrong_stack_is_caught_by_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpeft.training import stack

    honest = stack._product
    monkeypatch.setattr(
        stack, "_product", lambda layer, own, rows: honest(layer, {n: v.flip(0) for n, v in own.items()}, rows)
    )
    simulate(run(tmp_path / "run", 3))
    assert chosen(tmp_path / "run")["clients"] == 1
    assert "side by side gradients are away by" in chosen(tmp_path / "run")["reason"]


def test_one_client_that_diverges_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Group.read

    def spoilt(self: Group, place: int) -> Any:
        found = reading(self, place)
        return found * float("nan") if self.members[place].client == 1 else found

    monkeypatch.setattr(Group, "read", spoilt)
    simulate(run(tmp_path / "run", 3))
    ((failure,),) = [row["failures"] for row in lines(tmp_path / "run")[1:]]
    assert failure["client"] == 1
    assert "training diverged" in failure["reason"]


def test_nodes_of_their_own_refuse_to_be_told_to_train_side_by_side(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"compute\.stack = 3: nodes of their own train one client at a time"):
        ready(run(tmp_path / "run", 3))
    assert not (tmp_path / "run").exists()


def test_the_number_side_by_side_is_part_of_the_experiment(tmp_path: Path) -> None:
    assert len({run(tmp_path, stack).hash for stack in (1, 3, "auto")}) == 3
