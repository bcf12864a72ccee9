"""Runs with error feedback: both sides hold the same bits, and a run that stops goes on to the same ones."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fedpeft.config import Experiment
from fedpeft.engines.inline import InlineGrid, simulate
from fedpeft.engines.local import local_client_app, node_context
from fedpeft.report.export import read_slots
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds.memory import entries, unpack_memory
from fedpeft.server import serve
from fedpeft.tensors import Tensors
from fedpeft.training.feedback import owed, own
from fedpeft.training.workbench import assemble
from tests.conftest import needed, tiny
from tests.e2e.test_inline import digest, lines
from tests.e2e.test_memory import files, newest
from tests.e2e.test_resume import StoppedError, stop_at

BOTH = {
    "codec": {"name": "compeft", "density": 0.1},
    "codec_down": {"name": "int8"},
    "feedback": {"up": True, "down": True},
}


def experiment(name: str, run: Path, **changes: Any) -> Experiment:
    """Return five rounds of two clients of four, so that memories are of different ages."""
    rounds = {"clients_per_round": 2, "num_rounds": 5}
    both = {**BOTH, **changes}
    output = {"directory": str(run), **both.pop("output", {})}
    return tiny(run, **needed(name, partition={"num_clients": 4}, rounds=rounds, output=output, **both))


def exact(run: Path) -> Tensors:
    found = checkpoints.latest(run / "checkpoints")
    assert found is not None
    return found.state.exact


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the run of a strategy that nothing stops; made once."""

    @cache
    def made(name: str) -> Path:
        run = tmp_path_factory.mktemp(name) / "whole"
        simulate(experiment(name, run))
        return run

    return made


@pytest.mark.parametrize("name", ["fedavg", "rolora", "scaffold"])
@pytest.mark.parametrize(
    ("place", "of", "call"),
    [
        (RunDirectory, "append", 4),
        (checkpoints, "save", 3),
        (InlineGrid, "pull_messages", 2 * 2 + 1),
        (InlineGrid, "pull_messages", 3 * 2 + 2),
    ],
)
def test_a_run_that_stops_goes_on_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Callable[[str], Path],
    name: str,
    place: Any,
    of: str,
    call: int,
) -> None:
    whole, run = undisturbed(name), tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, place, of, call, before=place is RunDirectory)
        with pytest.raises(StoppedError):
            simulate(experiment(name, run))

    simulate(experiment(name, run, output={"if_exists": "resume"}))

    assert lines(run) == lines(whole)
    assert [row["failures"] for row in lines(run)] == [[]] * 6
    assert digest(run) == digest(whole)
    assert exact(run) == exact(whole)
    assert files(run) == files(whole)
    assert files(run)


def test_alternating_factors_have_memories_of_their_own(tmp_path: Path) -> None:
    """RoLoRA sends B in odd rounds and A in even ones: what is owed of the other factor stays as it was."""
    run = tmp_path / "run"
    settings = tiny(run, **needed("rolora", rounds={"num_rounds": 3}, **BOTH))
    simulate(settings)
    paths = sorted((run / "clients" / "0").glob("round_*.safetensors"))[-2:]
    before, after = (owed(unpack_memory(path.read_bytes(), where="here")) for path in paths)
    roles = {slot.name: slot.role for slot in assemble(settings).adapted.attached.slots}
    changed = {roles[name] for name in after if name not in before or (before[name] != after[name]).any()}

    assert set(before) == set(after)
    assert {"A", "B"} <= {roles[name] for name in after}
    assert len(changed & {"A", "B"}) == 1


def test_the_adapter_of_the_run_is_what_clients_decode(tmp_path: Path) -> None:
    settings = experiment("fedavg", tmp_path / "run")
    simulate(settings)
    bench, whole = assemble(settings), exact(tmp_path / "run")
    common = bench.common("down", round_number=6)
    decoded = bench.codec_down.decode(bench.codec_down.encode(whole, common), whole.manifest(), common)

    assert read_slots(tmp_path / "run" / "adapter") == decoded
    assert decoded != whole


def test_a_lossless_codec_owes_nothing(tmp_path: Path) -> None:
    """A chain that keeps all is lossless; the run is the one without feedback, bit for bit."""
    every = {"name": "top_k", "density": 1.0}
    for name, up in (("with", True), ("without", False)):
        simulate(tiny(tmp_path / name, codec=every, feedback={"up": up}))

    assert digest(tmp_path / "with") == digest(tmp_path / "without")
    kept = newest(tmp_path / "with", 0)
    assert own(kept) == Tensors()
    assert owed(kept).norm() == 0.0


def test_ranks_that_differ_by_round_keep_what_is_owed_of_each(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = tiny(run, **needed("dylora", codec={"name": "compeft"}, feedback={"up": True}))
    simulate(settings)
    initial = assemble(settings).adapted.initial

    assert [row["failures"] for row in lines(run)] == [[]] * len(lines(run))
    kept = owed(newest(run, 0))
    assert set(kept.manifest()) == set(initial.manifest())


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"name": "tiny", "architecture": "vit", "hidden_size": 32, "num_layers": 1}},
        {"adapter": {"name": "lora", "rank": 2}},
        {"adapter": {"name": "pissa", "rank": 4}},
    ],
    ids=["base", "rank", "plan"],
)
def test_nodes_of_another_base_rank_or_plan_owe_nothing(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Joining drops what was left out before: the same bits as on nodes that never trained."""

    @cache
    def context(node: int) -> Any:
        return node_context(node, num_clients=4, run_config=None)

    def run(name: str, **changes: Any) -> Path:
        bench = assemble(settings := experiment("fedavg", tmp_path / name, **changes))
        grid = InlineGrid(local_client_app(bench), num_clients=4, contexts=context)
        place, resume = RunDirectory.prepare(settings)
        serve(grid, bench, place, resume=resume)
        return tmp_path / name

    used = run("before")
    assert used.exists()
    assert any(entries(context(node).state) for node in range(4)), "something is owed"
    after = run("after", **changed)
    context.cache_clear()
    assert digest(after) == digest(run("fresh", **changed))
