"""Clients that keep tensors between rounds: what travels, what stays, and runs that stop at any moment."""

import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft.adapters.base import pairs
from fedpeft.config import Experiment
from fedpeft.engines import flower
from fedpeft.engines.inline import InlineGrid, simulate
from fedpeft.engines.local import local_client_app, node_context
from fedpeft.errors import ResumeError, UnsupportedError
from fedpeft.report.export import read_slots
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds.memory import entries, unpack_memory
from fedpeft.rounds.resume import resumed
from fedpeft.server import serve
from fedpeft.tensors import Tensors
from fedpeft.training.workbench import assemble
from tests.conftest import needed, tiny
from tests.e2e.test_inline import digest, lines
from tests.e2e.test_resume import StoppedError, stop_at
from tests.e2e.test_strategies import watch_bodies

NAMES = ("fedsa_lora", "scaffold")
every_name = pytest.mark.parametrize("name", NAMES)


def experiment(name: str, run: Path, *, every: int = 1, **output: Any) -> Experiment:
    """Return five rounds of two clients of four, so that memories are of different ages."""
    rounds = {"clients_per_round": 2, "num_rounds": 5, "checkpoint_every": every}
    output = {"directory": str(run), **output}
    return tiny(run, **needed(name, partition={"num_clients": 4}, rounds=rounds, output=output))


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "clients").rglob("*.safetensors"))}


def newest(run: Path, client: int) -> Tensors:
    path = sorted((run / "clients" / str(client)).glob("round_*.safetensors"))[-1]
    return unpack_memory(path.read_bytes(), where=str(path))


def state_digest(run: Path) -> str:
    found = checkpoints.latest(run / "checkpoints")
    assert found is not None
    return found.state.memory.digest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Unbroken runs, by strategy and rounds between checkpoints."""
    runs = {(name, every): tmp_path_factory.mktemp(name) / "run" for name in NAMES for every in (1, 2)}
    for (name, every), run in runs.items():
        simulate(experiment(name, run, every=every))
    return runs


def same(run: Path, other: Path) -> None:
    assert lines(run) == lines(other)
    assert digest(run) == digest(other)
    assert state_digest(run) == state_digest(other)
    assert files(run) == files(other)


@every_name
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("place", "of", "call"),
    [
        (RunDirectory, "append", 4),
        (checkpoints, "save", 3),
        (InlineGrid, "pull_messages", 2 * 2 + 1),
        (InlineGrid, "pull_messages", 3 * 2 + 2),
    ],
)
def test_a_run_that_stops_goes_on_with_what_its_clients_knew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[tuple[str, int], Path],
    name: str,
    every: int,
    place: Any,
    of: str,
    call: int,
) -> None:
    """Between a client's training and its round's line, before the checkpoint, and in the middle of a cohort."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, place, of, call, before=place is RunDirectory)
        with pytest.raises(StoppedError):
            simulate(experiment(name, run, every=every))
    stopped = files(run)

    simulate(experiment(name, run, every=every, if_exists="resume"))

    assert stopped
    same(run, whole[name, every])


@every_name
@pytest.mark.parametrize("every", [1, 2])
def test_it_goes_on_from_the_checkpoint_before_the_newest_too(
    tmp_path: Path, whole: dict[tuple[str, int], Path], name: str, every: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[name, every], run)
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])

    simulate(experiment(name, run, every=every, if_exists="resume"))

    same(run, whole[name, every])


@every_name
def test_only_clients_that_were_drawn_keep_anything_and_little(
    tmp_path: Path, whole: dict[tuple[str, int], Path], name: str
) -> None:
    drawn = {client for row in lines(whole[name, 1]) for client in row["clients"]}
    folders = {int(path.name): len(list(path.iterdir())) for path in (whole[name, 1] / "clients").iterdir()}

    assert set(folders) == drawn
    assert max(folders.values()) <= 3


@every_name
def test_a_run_that_overwrites_another_begins_with_empty_memories(
    tmp_path: Path, whole: dict[tuple[str, int], Path], name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[name, 1], run)
    (run / "clients" / "99").mkdir()

    simulate(experiment(name, run, if_exists="overwrite"))

    same(run, whole[name, 1])
    assert not (run / "clients" / "99").exists()


@every_name
def test_a_node_that_keeps_its_own_record_comes_to_the_same_bits(
    tmp_path: Path, whole: dict[tuple[str, int], Path], name: str
) -> None:
    """As under Flower, whose nodes carry the record from message to message; nothing is on the server's disk."""
    settings = experiment(name, tmp_path / "run")
    bench = assemble(settings)
    run, _ = RunDirectory.prepare(settings)
    contexts = cache(partial(node_context, num_clients=4))
    grid = InlineGrid(local_client_app(bench), num_clients=4, contexts=contexts)

    serve(grid, bench, run)

    assert not run.clients.exists()
    assert lines(run.path) == lines(whole[name, 1])
    assert digest(run.path) == digest(whole[name, 1])
    held = [entries(contexts(client).state) for client in range(4)]
    assert max(map(len, held)) <= 2


@every_name
def test_a_new_job_of_the_same_nodes_begins_with_empty_memories(tmp_path: Path, name: str) -> None:
    benches = [assemble(experiment(name, tmp_path / run)) for run in "ab"]
    grid = InlineGrid(local_client_app(benches[0]), num_clients=4)
    for bench in benches:
        serve(grid, bench, RunDirectory.prepare(bench.experiment)[0])

    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


@every_name
def test_flower_refuses_to_go_on_since_its_nodes_have_forgotten(
    tmp_path: Path, whole: dict[tuple[str, int], Path], name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[name, 1], run)
    before = (run / "rounds.jsonl").read_bytes()
    settings = experiment(name, run, if_exists="resume")

    with pytest.raises(ResumeError, match=rf"after round 5 .*'{name}' hold memories.*resume it there, else start"):
        flower.simulate(settings)
    with pytest.raises(ResumeError, match="hold memories"):
        resumed(RunDirectory.open(run), assemble(settings))

    assert (run / "rounds.jsonl").read_bytes() == before
    assert files(run) == files(whole[name, 1])


@every_name
def test_a_run_whose_memories_are_gone_is_not_continued(
    tmp_path: Path, whole: dict[tuple[str, int], Path], name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[name, 1], run)
    shutil.rmtree(run / "clients")

    with pytest.raises(ResumeError, match=r"client \d trained in round \d and its memory of it is not here"):
        simulate(experiment(name, run, if_exists="resume"))


def test_scaffold_sends_twice_the_floats_each_way_and_the_server_holds_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[tuple[str, int], Path]
) -> None:
    seen = watch_bodies(monkeypatch)
    settings = experiment("scaffold", tmp_path / "run")
    simulate(settings)
    initial = assemble(settings).adapted.initial

    assert seen == {side: {8 * initial.num_elements} for side in ("down", "up")}
    found = checkpoints.latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    own = [newest(tmp_path / "run", int(path.name)) for path in (tmp_path / "run" / "clients").iterdir()]
    for control, value in found.state.memory.items():
        mean = sum((memory[control].double() for memory in own), start=torch.zeros(1).double()) / 4
        torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
    assert found.state.memory.norm() > 0


def test_scaffold_without_a_server_that_corrects_is_fedavg_in_its_first_round(tmp_path: Path) -> None:
    """Before anybody has a control variate, there is no correction."""
    train, rounds = {"optimizer": "sgd", "learning_rate": 0.1}, {"num_rounds": 1}
    simulate(tiny(tmp_path / "scaffold", strategy={"name": "scaffold"}, train=train, rounds=rounds))
    uniform = {"name": "fedavg", "weighting": "uniform"}
    simulate(tiny(tmp_path / "fedavg", strategy=uniform, train=train, rounds=rounds))

    one, two = (read_slots(tmp_path / name / "adapter") for name in ("scaffold", "fedavg"))
    for slot in one:
        torch.testing.assert_close(one[slot], two[slot], rtol=1e-6, atol=1e-6)


def test_fedsa_sends_a_alone_and_clients_measure_their_own_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_bodies(monkeypatch)
    settings = tiny(tmp_path / "run", **needed("fedsa_lora"))
    simulate(settings)
    bench = assemble(settings)
    shared = [pair.a.name for pair in pairs(bench.adapted.attached.slots)]
    final, initial = read_slots(tmp_path / "run" / "adapter"), bench.adapted.initial

    assert seen == {side: {4 * initial.select(shared).num_elements} for side in ("down", "up")}
    assert {name for name in final if (final[name] != initial[name]).any()} == set(shared)
    sums: dict[str, float] = {}
    for client in range(3):
        own = newest(tmp_path / "run", client)
        assert set(own) == set(initial) - set(shared)
        assert all((own[name] != initial[name]).any() for name in own)
        bench.adapted.attached.write(final.replace(own))
        for metric, value in bench.score(bench.client_examples(client)[1]).items():
            sums[metric] = sums.get(metric, 0.0) + value
    assert lines(tmp_path / "run")[-1]["client_metrics"] == bench.adapted.task.metrics(sums)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": {"name": "scaffold"}}, r"train\.optimizer = 'adamw'"),
        ({"strategy": {"name": "fedsa_lora"}}, r"set evaluate\.on_clients = true"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words):
        simulate(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@every_name
def test_half_the_bytes_in_bfloat16_serve_it_too(tmp_path: Path, name: str) -> None:
    summary = simulate(
        tiny(tmp_path / "run", **needed(name, codec={"name": "bfloat16"}, codec_down={"name": "bfloat16"}))
    )

    assert [row["failures"] for row in lines(tmp_path / "run")] == [[]] * 4
    assert summary["adapter_digest"] == digest(tmp_path / "run")
