"""Where a round's time went: the phases account for it, by one process and by several."""

import re
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fedpeft import seeds
from fedpeft.cli import app
from fedpeft.engines.inline import simulate
from fedpeft.report.profile import ProfileWatcher, profiled
from fedpeft.report.record import RoundRecord
from fedpeft.report.watch import Watcher
from fedpeft.timing import Clock, Spans, Speed
from fedpeft.training.speed import matmul_peak, measure
from fedpeft.training.workbench import assemble
from tests.conftest import tiny
from tests.e2e.test_inline import digest, lines

ROW = re.compile(r"([a-z][a-z -]*[a-z]) +(\d+\.\d\d) s")


def phases(line: str) -> dict[str, float]:
    """Return the phases of one round's line."""
    return {name: float(seconds) for name, seconds in ROW.findall(line.partition(": ")[2])}


def test_phases_sum_to_the_wall_time_and_change_no_bit(tmp_path: Path) -> None:
    said: list[str] = []
    experiment = tiny(tmp_path / "run", train={"local_steps": 20}, rounds={"num_rounds": 2})
    began = time.perf_counter()
    with profiled(Watcher(), experiment, said.append) as watcher:
        simulate(experiment, watcher=watcher)
    wall = time.perf_counter() - began

    rounds = [phases(line) for line in said if line.startswith("  profile of round")]
    simulate(tiny(tmp_path / "plain", train={"local_steps": 20}, rounds={"num_rounds": 2}))

    assert len(rounds) == 3
    assert {"load", "evaluate", "record"} <= set(rounds[0])
    assert {"forward-backward", "optimizer", "data", "codec", "aggregate", "evaluate", "record"} <= set(rounds[1])
    assert 0.7 * wall < sum(sum(each.values()) for each in rounds) <= wall + 0.2
    for each in rounds[1:]:
        assert sum(each.values()) - each["other"] > 0.6 * sum(each.values())
        assert max(each, key=lambda name: each[name]) == "forward-backward"
    assert re.search(r"GFLOP/s a process, \d+% of the", said[-1])
    assert digest(tmp_path / "run") == digest(tmp_path / "plain")
    assert lines(tmp_path / "run") == lines(tmp_path / "plain")


class Ticking:
    """Time that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_processes_have_accounts_of_their_own_that_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 s the server waits 9 and adds up for half of one; one worker works 8 of its 10 s, the other 2 of its 10."""
    ticking, clock, said = Ticking(monkeypatch), Clock(), []
    clock.speed = Speed(flops_per_element=3e9, peak=4e9)
    watcher = ProfileWatcher(Watcher(), clock, said.append)
    clock.others.turn(1, "load")
    clock.others.turn(2, None)
    with clock.phase("wait"):
        ticking.now = 2.0
        clock.others.turn(1, None)
        clock.others.turn(2, "idle")
        ticking.now = 9.0
    with clock.phase("aggregate"):
        ticking.now = 9.5
    ticking.now = 10.0
    clock.add({"forward-backward": 6.0, "data": 1.5}, 4)

    watcher.round_finished(RoundRecord(round=1, clients=(0,), worker_processes=2))
    watcher.finished({})

    assert said[:2] == [
        "  profile of round 1, server: idle 9.00 s (90%), aggregate 0.50 s (5%), other 0.50 s (5%)",
        "  profile of round 1, 2 workers: idle 8.00 s (40%), forward-backward 6.00 s (30%), other 2.50 s (12%), "
        "load 2.00 s (10%), data 1.50 s (8%)",
    ]
    assert said[2] == "profile, all rounds of training, server, 10.0 s:"
    assert said[6] == "profile, all rounds of training, 2 workers, 20.0 s:"
    assert [line.split() for line in said[7:9]] == [
        ["idle", "8.00", "s", "40.0%"],
        ["forward-backward", "6.00", "s", "30.0%"],
    ]
    assert said[-1].strip().startswith("forward and backward at 2.0 GFLOP/s a process, 50% of the 4.0")


def test_an_open_span_is_counted_up_to_now_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking, spans = Ticking(monkeypatch), Spans()
    spans.turn(7, "idle")
    ticking.now = 3.0
    assert spans.take() == {"idle": 3.0}
    ticking.now = 5.0
    spans.turn(7, None)
    ticking.now = 9.0
    assert spans.take() == {"idle": 2.0}
    assert spans.take() == {}


def test_operations_are_those_of_the_products(tmp_path: Path) -> None:
    """A pass forward costs what its linear layers do, and backward to the input of each at least as much again."""
    bench = assemble(tiny(tmp_path / "run"))
    forward = _forward_operations(bench.adapted.attached.model, bench)
    before = {name: value.clone() for name, value in bench.adapted.attached.model.state_dict().items()}
    generator = torch.get_rng_state()

    speed = measure(bench)

    pixels = bench.held_out[0]["pixel_values"].numel()
    assert 1.9 * forward < speed.flops_per_element * pixels < 3.0 * forward
    assert 1e7 < speed.peak < 1e14
    assert all(parameter.grad is None for parameter in bench.adapted.attached.model.parameters())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in bench.adapted.attached.model.state_dict().items())


def _forward_operations(model: nn.Module, bench: object) -> float:
    """Add up 2 x inputs x outputs x rows of every linear layer and of the patches for one image."""
    total = 0.0

    def add(module: nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        nonlocal total
        weight = module.get_parameter("weight")
        per_output = weight[0].numel()
        total += 2 * per_output * result.numel()

    kinds = (nn.Linear, nn.Conv2d)
    hooks = [each.register_forward_hook(add) for each in model.modules() if isinstance(each, kinds)]
    with torch.no_grad(), seeds.isolated(0, "x"):
        model(pixel_values=torch.zeros(1, 1, 8, 8))
    for hook in hooks:
        hook.remove()
    return total


def test_the_peak_is_of_the_matrix_product() -> None:
    assert matmul_peak(torch.device("cpu"), torch.float32) > 1e8


def test_the_flower_engine_is_not_profiled(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(tiny(tmp_path / "run").to_toml())
    result = CliRunner().invoke(app, ["simulate", str(file), "--profile", "--engine", "flower"])
    assert "--profile: has no effect with --engine flower" in str(result.exception)
