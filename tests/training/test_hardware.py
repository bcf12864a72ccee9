"""Devices that are not there, blocks computed twice, and the number format that a measurement chooses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedpeft.config import Experiment
from fedpeft.engines import start
from fedpeft.engines.inline import simulate
from fedpeft.errors import ConfigError, ResumeError, UnsupportedError
from fedpeft.models.blocks import blocks_of
from fedpeft.report.run_directory import RunDirectory
from fedpeft.training.hardware import recompute_blocks
from fedpeft.training.precision import faster, measured
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import tiny
from tests.e2e.test_inline import digest
from tests.e2e.test_resume import StoppedError, stop_at
from tests.training.test_frozen import CASES, experiment, inner_layer

EXAMPLE: dict[str, Any] = {
    "privacy": {"unit": "example", "sample_rate": 0.2, "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3},
    "strategy": {"name": "fedavg", "weighting": "uniform"},
}


def gradients(bench: Workbench, count: list[int]) -> dict[str, Tensor]:
    """Return gradients in training mode, dropout drawn from one seed, and count the first block's calls."""
    model, task = bench.adapted.attached.model, bench.adapted.task
    inner_layer(blocks_of(model).blocks[0]).register_forward_hook(lambda *_: count.append(1))
    rows, _ = bench.client_examples(0)
    model.train()
    torch.manual_seed(0)
    parameters = bench.adapted.attached.parameters()
    for parameter in parameters.values():
        parameter.grad = None
    task.losses(model, task.collate(rows[:4])).mean().backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None}


@pytest.mark.parametrize(("architecture", "task"), CASES)
def test_blocks_computed_again_give_the_same_gradients(tmp_path: Path, architecture: str, task: str) -> None:
    whole = {"adapter": {"target_modules": None}, "model": {"dropout": 0.3}}
    found, calls = [], []
    for again in (False, True):
        compute = {"cache_frozen": False, "gradient_checkpointing": again}
        made = experiment(tmp_path, architecture, task, on=False, **{**whole, "compute": compute})
        count: list[int] = []
        found.append(gradients(assemble(made), count))
        calls.append(len(count))
    assert calls == [1, 2]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-6)


def test_blocks_are_computed_again_above_states_that_are_kept(tmp_path: Path) -> None:
    digests = []
    for again in (False, True):
        made = experiment(tmp_path, compute={"cache_frozen": True, "gradient_checkpointing": again})
        bench = assemble(made)
        digests.append(gradients(bench, []))
    for name, value in digests[0].items():
        torch.testing.assert_close(digests[1][name], value, rtol=1e-6, atol=1e-6)


def test_a_model_that_cannot_compute_again_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="Linear cannot compute its blocks again"):
        recompute_blocks(nn.Linear(2, 2))


def test_single_examples_are_refused_where_it_is_not_proved() -> None:
    with pytest.raises(ConfigError, match=r"gradient_checkpointing: .* computed once"):
        assemble(tiny(compute={"gradient_checkpointing": True}, **EXAMPLE))


def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match=r"compute\.device = 'cuda': torch .* finds no CUDA device; write 'cpu'"):
        assemble(tiny(compute={"device": "cuda"}, model={"architecture": "bert"}))


def test_a_device_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UnsupportedError, match="'cuda:2': expected an index below 2"):
        assemble(tiny(compute={"device": "cuda:2"}))


@pytest.mark.parametrize(
    ("seconds", "chosen"), [((1.0, 0.5), "bfloat16"), ((1.0, 0.95), "float32"), ((1.0, 2.5), "float32")]
)
def test_bfloat16_must_be_clearly_faster(seconds: tuple[float, float], chosen: str) -> None:
    assert faster({"float32": seconds[0], "bfloat16": seconds[1]}) == chosen


def test_both_formats_are_measured_and_nothing_of_the_model_is_changed() -> None:
    bench = assemble(tiny())
    before = bench.adapted.attached.read().digest()
    seconds = measured(bench)
    assert set(seconds) == {"float32", "bfloat16"}
    assert all(0 < value < 60 for value in seconds.values())
    assert bench.adapted.attached.read().digest() == before
    assert all(parameter.grad is None for parameter in bench.adapted.attached.parameters().values())


@pytest.mark.parametrize("chosen", ["float32", "bfloat16"])
def test_what_is_measured_is_the_run_s_and_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    def asked(name: str, precision: str = "auto", **output: str) -> Experiment:
        return tiny(compute={"precision": precision}, output={"directory": str(tmp_path / name), **output})

    with monkeypatch.context() as patch:
        patch.setattr(start, "faster", lambda _: chosen)
        stop_at(patch, RunDirectory, "append", 3, before=True)
        with pytest.raises(StoppedError):
            simulate(asked("auto"))
    monkeypatch.setattr(start, "measured", None)  # what goes on does not measure again
    summary = simulate(asked("auto", if_exists="resume"))

    assert RunDirectory.open(tmp_path / "auto").experiment().compute.precision == chosen
    assert summary["precision"] == chosen
    assert simulate(asked("said", chosen))["config_hash"] == summary["config_hash"]
    assert digest(tmp_path / "auto") == digest(tmp_path / "said")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[chosen]
    with pytest.raises(ResumeError, match="precision"):
        simulate(asked("auto", other, if_exists="resume"))


def test_a_part_that_is_told_auto_asks_for_a_value() -> None:
    with pytest.raises(ConfigError, match="precision = 'auto' is settled where"):
        assemble(tiny(compute={"precision": "auto"}))
