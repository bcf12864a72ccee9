"""Clients that hold part of the ranks, over whole runs: what travels, what moves, and at which scale they work."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedpeft import client
from fedpeft.adapters.base import Adapter, pairs
from fedpeft.adapters.lora import Lora
from fedpeft.codecs.base import Common
from fedpeft.codecs.none import Lossless
from fedpeft.config import Experiment
from fedpeft.engines.inline import simulate
from fedpeft.errors import UnsupportedError
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds import exchange
from fedpeft.strategies.base import State
from fedpeft.strategies.ranks import rank_axes, sliced
from fedpeft.tensors import Tensors
from fedpeft.training import turn
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import tiny
from tests.e2e.test_inline import lines
from tests.e2e.test_resume import StoppedError, stop_at
from tests.e2e.test_strategies import checkpointed

RANKS = (1, 4, 2)
STACKING = ["fedex_lora", "flexlora", "flora", "florist"]


def run_of(out: Path, *, rounds: int = 3, steps: int = 3, resume: bool = False, **strategy: Any) -> Experiment:
    """Return three clients with lora of rank 4, and with weight decay, which reaches what has no gradient."""
    return tiny(
        out,
        strategy=strategy,
        adapter={"rank": 4},
        rounds={"num_rounds": rounds},
        train={"weight_decay": 0.1, "learning_rate": 0.05, "max_grad_norm": 1.0, "local_steps": steps},
        output={"if_exists": "resume"} if resume else {},
    )


def watch_sizes(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int, int], int]:
    """Keep the bytes of the floats packed, by side, round and client: both headers left aside."""
    seen: dict[tuple[str, int, int], int] = {}
    for side, place in (("down", exchange), ("up", client)):

        def packing(header: Any, body: bytes, side: str = side, pack: Callable[..., Any] = place.pack) -> Any:
            if body:
                key = (side, header.envelope.round_number, header.client)
                seen[key] = len(body) - 8 - int.from_bytes(body[:8], "little")
            return pack(header, body)

        monkeypatch.setattr(place, "pack", packing)
    return seen


def num_bytes(bench: Workbench, num_ranks: int) -> int:
    """Return 4 (b (d_in + d_out) for each pair, and the head)."""
    slots = bench.adapted.attached.slots
    heads = sum(slot.spec.num_elements for slot in slots if slot.role == "head")
    return 4 * (num_ranks * sum(pair.a.shape[1] + pair.b.shape[0] for pair in pairs(slots)) + heads)


def rank_in(bench: Workbench, round_number: int) -> int:
    state = State(adapter=bench.adapted.initial)
    slots = bench.adapted.attached.slots
    rank = bench.strategy.directive(slots, state, round_number=round_number, client=0).rank
    assert rank is not None
    return rank


@pytest.mark.parametrize("frozen", [False, True])
def test_dylora_sends_the_ranks_of_the_round_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    experiment = run_of(tmp_path / "run", name="dylora", frozen=frozen)
    bench, seen = assemble(experiment), watch_sizes(monkeypatch)
    ranks = {number: rank_in(bench, number) for number in (1, 2, 3)}

    simulate(experiment)

    assert len(set(ranks.values())) > 1
    assert {key: size for key, size in seen.items() if key[0] == "down"} == {
        ("down", number, k): num_bytes(bench, rank) for number, rank in ranks.items() for k in range(3)
    }
    assert {key: size for key, size in seen.items() if key[0] == "up"} == {
        ("up", number, k): num_bytes(bench, 1 if frozen else rank) for number, rank in ranks.items() for k in range(3)
    }
    for row in lines(tmp_path / "run")[1:]:
        for key, side in (("bytes_down", "down"), ("bytes_up", "up")):
            packed = sum(seen[side, row["round"], k] for k in range(3))
            assert packed < row[key] < packed + 3 * 8192


@pytest.mark.parametrize("frozen", [False, True])
def test_dylora_moves_the_ranks_of_the_round_and_no_others_bit(tmp_path: Path, frozen: bool) -> None:
    experiment = run_of(tmp_path / "run", rounds=2, name="dylora", frozen=frozen)
    bench = assemble(experiment)
    slots = bench.adapted.attached.slots

    simulate(experiment)

    states = (bench.adapted.initial, *(checkpointed(tmp_path / "run", number) for number in (1, 2)))
    for number, (before, after) in enumerate(pairwise(states), start=1):
        rank = rank_in(bench, number)
        trained = range(rank - 1 if frozen else 0, rank)
        assert moved_ranks(before, after, rank_axes(slots)) == set(trained)
        assert (after["classifier.weight"] != before["classifier.weight"]).any()


def moved_ranks(before: Tensors, after: Tensors, axes: dict[str, int]) -> set[int]:
    """Return the ranks of which a bit of some factor changed."""
    return {
        rank
        for name, axis in axes.items()
        for rank in range(before[name].shape[axis])
        if before[name].select(axis, rank).numpy().tobytes() != after[name].select(axis, rank).numpy().tobytes()
    }


def test_hetlora_sends_each_client_its_ranks_packed_once_for_all_who_hold_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = run_of(tmp_path / "run", rounds=2, name="hetlora", client_rank=[1, 4, 1])
    bench, seen, encoded = assemble(experiment), watch_sizes(monkeypatch), Counter[int]()
    encode = Lossless.encode

    def counting(self: Lossless, tensors: Tensors, common: Common) -> bytes:
        encoded[4 * tensors.num_elements] += 1
        return encode(self, tensors, common)

    monkeypatch.setattr(Lossless, "encode", counting)
    simulate(experiment)

    expected = {k: num_bytes(bench, rank) for k, rank in enumerate((1, 4, 1))}
    assert seen == {(side, n, k): size for side in ("down", "up") for n in (1, 2) for k, size in expected.items()}
    assert encoded == {expected[0]: 2 * (1 + 2), expected[1]: 2 * (1 + 1)}


@pytest.mark.parametrize("name", STACKING)
def test_one_that_stacks_sends_each_client_its_ranks_and_the_residual_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    experiment = run_of(tmp_path / "run", rounds=2, name=name, client_rank=list(RANKS))
    bench, seen = assemble(experiment), watch_sizes(monkeypatch)

    simulate(experiment)

    own = {k: num_bytes(bench, rank) for k, rank in enumerate(RANKS)}
    beside = {1: 0, 2: residual_bytes(bench, name)}
    assert seen == {("up", n, k): size for n in (1, 2) for k, size in own.items()} | {
        ("down", n, k): size + beside[n] for n in (1, 2) for k, size in own.items()
    }
    assert lines(tmp_path / "run")[-1]["failures"] == []


def residual_bytes(bench: Workbench, name: str) -> int:
    """Return the bytes of one round's residual: flora's stacked ranks, fedex_lora's less those of the first client."""
    ranks = {"flora": sum(RANKS), "fedex_lora": sum(max(rank, RANKS[0]) for rank in RANKS[1:])}.get(name, 0)
    shapes = [(pair.b.shape[0], pair.a.shape[1]) for pair in pairs(bench.adapted.attached.slots)]
    return 4 * sum(min(ranks * (d_out + d_in), d_out * d_in) for d_out, d_in in shapes)


@pytest.mark.parametrize("name", ["hetlora", *STACKING])
def test_clients_hold_zeros_beyond_their_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    experiment = run_of(tmp_path / "run", name=name, client_rank=list(RANKS))
    slots = assemble(experiment).adapted.attached.slots
    held: list[tuple[int, Tensors]] = []
    train: Callable[..., Any] = vars(client)["train_turn"]

    def training(bench: Workbench, *arguments: Any, **options: Any) -> Any:
        outcome = train(bench, *arguments, **options)
        held.append((options["client"], bench.adapted.attached.read()))
        return outcome

    monkeypatch.setattr(client, "train_turn", training)
    simulate(experiment)

    assert len(held) == 9
    for number, tensors in held:
        for name, axis in rank_axes(slots).items():
            nonzero = {rank for rank in range(4) if tensors[name].select(axis, rank).any()}
            assert nonzero == set(range(RANKS[number]))


def test_clients_of_dylora_train_and_evaluate_at_the_scale_of_the_round_and_the_server_at_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny(
        tmp_path / "run",
        strategy={"name": "dylora"},
        adapter={"rank": 4, "alpha": 8},
        evaluate={"on_clients": True, "client_fraction": 0.25},
    )
    seen: dict[str, list[set[float]]] = {"train": [], "score": []}
    train: Callable[..., Any] = vars(turn)["train_locally"]
    score = Workbench.score

    def scales_of(model: Any) -> set[float]:
        return {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}

    def training(model: Any, *arguments: Any, **options: Any) -> Any:
        seen["train"].append(scales_of(model))
        return train(model, *arguments, **options)

    def scoring(self: Workbench, examples: Any) -> dict[str, float]:
        if len(examples) > 1:  # one alone is scored to know what clients must have measured
            seen["score"].append(scales_of(self.adapted.attached.model))
        return score(self, examples)

    monkeypatch.setattr(Workbench, "score", scoring)
    monkeypatch.setattr(turn, "train_locally", training)
    simulate(experiment)

    bench = assemble(experiment)
    scales = {number: {8.0 / rank_in(bench, number)} for number in (1, 2, 3)}
    assert seen["train"] == [scales[number] for number in (1, 2, 3) for _ in range(3)]
    on_clients_then_here = [scale for number in (1, 2, 3) for scale in [scales[number]] * 3 + [{2.0}]]
    assert seen["score"] == [{2.0}, *on_clients_then_here]


def test_an_adapter_whose_scale_cannot_change_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lora, "scaled", Adapter.scaled)

    with pytest.raises(UnsupportedError, match="strategy 'dylora' changes the scale of pairs: adapter Lora has no"):
        simulate(tiny(tmp_path / "run", strategy={"name": "dylora"}))
    assert not (tmp_path / "run").exists()
    assemble(tiny(tmp_path / "run", strategy={"name": "hetlora"}))


def test_a_rank_the_adapter_does_not_have_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"strategy 'hetlora': client_rank has 5, expected 1 to 4"):
        simulate(run_of(tmp_path / "run", name="hetlora", client_rank=[5]))
    assert not (tmp_path / "run").exists()


def test_hetlora_clients_give_up_ranks_that_shrink_and_a_resumed_run_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruning = {"name": "hetlora", "prune": 0.5, "prune_penalty": 1.0, "client_rank": list(RANKS), "missing": "keep"}
    experiment = run_of(tmp_path / "whole", rounds=4, steps=6, **pruning)
    bench, seen = assemble(experiment), watch_sizes(monkeypatch)
    simulate(experiment)
    with monkeypatch.context() as patch:
        stop_at(patch, checkpoints, "save", 4, before=False)
        with pytest.raises(StoppedError):
            simulate(run_of(tmp_path / "cut", rounds=4, steps=6, **pruning))
    simulate(run_of(tmp_path / "cut", rounds=4, steps=6, resume=True, **pruning))

    ranks = {k: [rank_sent(bench, seen["down", n, k]) for n in range(1, 5)] for k in range(3)}
    assert all(held == sorted(held, reverse=True) and held[0] == RANKS[k] for k, held in ranks.items())
    assert ranks[0] == [1] * 4
    assert ranks[1][-1] < 4
    assert ranks[2][-1] == 1
    assert {seen["up", n, k] - seen["down", n, k] for n in range(1, 5) for k in range(3)} == {0}
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    assert checkpointed(tmp_path / "whole", 4) == checkpointed(tmp_path / "cut", 4)


def rank_sent(bench: Workbench, size: int) -> int:
    return next(rank for rank in range(1, 5) if num_bytes(bench, rank) == size)


def test_hetlora_with_all_ranks_and_equal_weights_is_fedavg(tmp_path: Path) -> None:
    for name, strategy in (
        ("het", {"name": "hetlora", "weighting": "examples"}),
        ("part", {"name": "hetlora", "weighting": "examples", "client_rank": [4]}),
        ("avg", {"name": "fedavg"}),
    ):
        simulate(run_of(tmp_path / name, rounds=1, **strategy))

    het, part, avg = (checkpointed(tmp_path / name, 1) for name in ("het", "part", "avg"))
    assert het == part
    assert (het - avg).norm() <= 1e-6 * avg.norm()
    slots = assemble(run_of(tmp_path / "avg", name="fedavg")).adapted.attached.slots
    assert sliced(het, slots, rank=4) == het
