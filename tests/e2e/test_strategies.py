"""What strategies promise, over whole runs: what travels, what stays, and that all of them finish and resume."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedpeft import client, plugins
from fedpeft.adapters.base import pairs
from fedpeft.engines.inline import simulate
from fedpeft.errors import UnsupportedError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds import exchange
from fedpeft.tensors import Tensors
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import needed, tiny
from tests.e2e.test_inline import digest, lines
from tests.e2e.test_resume import StoppedError, stop_at

NAMES = plugins.names("strategy")
ADAPTERS = {"fed_sb": {"adapter": {"name": "lora_sb"}}}
"""Changes of the tiny experiment for strategies that LoRA does not serve."""


def factors(bench: Workbench, role: str) -> list[str]:
    return [(pair.a if role == "A" else pair.b).name for pair in pairs(bench.adapted.attached.slots)]


def watch_bodies(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """Keep the bytes of the floats packed on each side: message header and safetensors header left aside."""
    seen: dict[str, set[int]] = {"down": set(), "up": set()}
    for side, place in (("down", exchange), ("up", client)):

        def packing(header: Any, body: bytes, side: str = side, pack: Callable[..., Any] = place.pack) -> Any:
            if body:
                seen[side].add(len(body) - 8 - int.from_bytes(body[:8], "little"))
            return pack(header, body)

        monkeypatch.setattr(place, "pack", packing)
    return seen


def watch_clients(monkeypatch: pytest.MonkeyPatch) -> list[Tensors]:
    """Keep what every client holds after its local training."""
    held: list[Tensors] = []
    train: Callable[..., Any] = vars(client)["train_turn"]

    def training(bench: Workbench, *arguments: Any, **options: Any) -> Any:
        outcome = train(bench, *arguments, **options)
        held.append(bench.adapted.attached.read())
        return outcome

    monkeypatch.setattr(client, "train_turn", training)
    return held


def checkpointed(run: Path, round_number: int) -> Tensors:
    """Return the global adapter after a round; a run keeps its newest two."""
    read: Callable[[Path], checkpoints.Checkpoint] = vars(checkpoints)["_read"]
    return read(run / "checkpoints" / f"round_{round_number:06d}").state.adapter


def test_ffa_keeps_a_where_the_seed_put_it_on_the_server_and_on_every_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny(tmp_path / "run", strategy={"name": "ffa_lora"}, train={"learning_rate": 0.05})
    bench, held = assemble(experiment), watch_clients(monkeypatch)
    frozen = bench.adapted.initial.select(factors(bench, "A"))

    simulate(experiment)

    final = checkpointed(tmp_path / "run", 3)
    assert len(held) == 9
    assert {tensors.select(frozen).digest() for tensors in (*held, final)} == {frozen.digest()}
    assert all((final[name] != bench.adapted.initial[name]).any() for name in factors(bench, "B"))


def test_ffa_saves_the_floats_of_a_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, bytes_of = watch_bodies(monkeypatch), {}
    for name in ("fedavg", "ffa_lora"):
        experiment = tiny(tmp_path / name, strategy={"name": name}, rounds={"num_rounds": 2})
        simulate(experiment)
        bytes_of[name] = {side: lengths.copy() for side, lengths in seen.items()}
        for lengths in seen.values():
            lengths.clear()
    bench = assemble(experiment)
    whole, of_a = (
        4 * bench.adapted.initial.select(n).num_elements for n in (bench.adapted.initial, factors(bench, "A"))
    )

    assert 0 < of_a < whole
    assert bytes_of["fedavg"]["up"] == bytes_of["fedavg"]["down"] == {whole}
    assert bytes_of["ffa_lora"]["up"] == bytes_of["ffa_lora"]["down"] == {whole - of_a}
    row = lines(tmp_path / "ffa_lora")[1]
    for key in ("bytes_up", "bytes_down"):
        assert 3 * (whole - of_a) < row[key] < lines(tmp_path / "fedavg")[1][key] - 3 * of_a


def test_rolora_moves_one_factor_a_round_and_the_head_in_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = {"target_modules": ["fc1"]}
    experiment = tiny(tmp_path / "run", strategy={"name": "rolora"}, rounds={"num_rounds": 2}, adapter=adapter)
    seen, bench = watch_bodies(monkeypatch), assemble(experiment)
    a, b = (set(factors(bench, role)) for role in "AB")
    heads = set(bench.adapted.initial) - a - b

    simulate(experiment)

    states = (bench.adapted.initial, *(checkpointed(tmp_path / "run", number) for number in (1, 2)))
    changed = [{name for name in before if (before[name] != after[name]).any()} for before, after in pairwise(states)]
    assert changed == [b | heads, a | heads]
    sizes = {4 * bench.adapted.initial.select(trained | heads).num_elements for trained in (a, b)}
    assert len(sizes) == 2
    assert seen == {"up": sizes, "down": {4 * bench.adapted.initial.num_elements}}


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_finishes_a_run(tmp_path: Path, name: str) -> None:
    few = {"partition": {"num_clients": 5}, "rounds": {"num_rounds": 2}}
    summary = simulate(tiny(tmp_path / "run", **needed(name, **few, **ADAPTERS.get(name, {}))))

    assert [row["failures"] for row in lines(tmp_path / "run")] == [[], [], []]
    assert summary["adapter_digest"] == digest(tmp_path / "run")


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fed_sb", "rolora", "dylora"])
def test_a_run_that_stops_goes_on_with_the_same_moments_and_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changes = {"strategy": {"name": name}, **ADAPTERS.get(name, {})}
    simulate(tiny(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        stop_at(patch, checkpoints, "save", 3, before=False)
        with pytest.raises(StoppedError):
            simulate(tiny(tmp_path / "cut", **changes))
    simulate(tiny(tmp_path / "cut", **changes, output={"if_exists": "resume"}))

    for run in ("whole", "cut"):
        assert len(lines(tmp_path / run)) == 4
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    assert digest(tmp_path / "whole") == digest(tmp_path / "cut")
    memories = [checkpoints.latest(RunDirectory.open(tmp_path / run).checkpoints) for run in ("whole", "cut")]
    assert len({found.state.memory.digest() for found in memories if found is not None}) == 1


def test_a_cohort_too_small_for_the_rule_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"strategy 'krum' .* at least 5 updates a round and 3 client\(s\)"):
        simulate(tiny(tmp_path / "run", strategy={"name": "krum"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variant", ["ridge", "cosine"])
def test_the_variant_of_a_strategy_is_in_what_a_run_leaves_behind(tmp_path: Path, variant: str) -> None:
    strategy = {"name": "lora_fair", "variant": variant} | ({"num_steps": 5} if variant == "cosine" else {})
    summary = simulate(tiny(tmp_path / "run", strategy=strategy, rounds={"num_rounds": 1}))

    assert summary["strategy"] == RunDirectory.open(tmp_path / "run").summary()["strategy"]
    assert (summary["strategy"]["variant"], summary["strategy"]["regularization"]) == (variant, 0.01)
    assert f'(`variant = "{variant}", regularization = 0.01' in (tmp_path / "run" / "adapter" / "README.md").read_text()


@pytest.mark.parametrize("name", ["lora_fair", "flexlora", "florist"])
def test_what_repairs_the_product_sends_no_more_than_plain_averaging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    experiment = tiny(tmp_path / "run", strategy={"name": name}, rounds={"num_rounds": 1})
    seen = watch_bodies(monkeypatch)

    simulate(experiment)

    assert seen["up"] == seen["down"] == {4 * assemble(experiment).adapted.initial.num_elements}


@pytest.mark.parametrize(
    "name", ["fedrot_lora", "fedsa_lora", "ffa_lora", "flexlora", "florist", "lora_fair", "rolora"]
)
def test_an_adapter_without_pairs_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match="no pairs"):
        simulate(tiny(tmp_path / "run", **needed(name, adapter={"name": "ia3"})))
    assert not (tmp_path / "run").exists()
