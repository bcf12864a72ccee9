"""hetlora's self-pruning: the penalty by hand, and rounds of clients that give up ranks against NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import nn

from fedpeft.adapters.base import Slot
from fedpeft.errors import TensorMismatchError, UnsupportedError
from fedpeft.strategies.base import ClientUpdate, Directive, State, Strategy, Turn
from fedpeft.strategies.hetlora import HetLora, Options, make
from fedpeft.tensors import Tensors
from tests.strategies.test_ranked import SCALE, cut, draw, slots_of

Array = np.ndarray[Any, np.dtype[np.float64]]


def turn_of(slots: tuple[Slot, ...], received: Tensors, rank: int | None) -> Turn:
    return Turn(
        slots=slots,
        received=received,
        round_number=1,
        num_clients=1,
        learning_rate=0.1,
        directive=Directive(rank=rank),
    )


def beyond(tensors: Tensors, rank: int) -> float:
    """Return s ||B[:, rank:]|| ||A[rank:]|| in float64."""
    b, a = (tensors[name].numpy().astype(np.float64) for name in ("q.B", "q.A"))
    return float(SCALE * np.linalg.norm(b[:, rank:]) * np.linalg.norm(a[rank:]))


def sent(strategy: Strategy[Any], slots: tuple[Slot, ...], state: State, deltas: dict[int, Tensors]) -> State:
    """Return the state after a round of clients that change by the first ranks of these, as many as they hold."""
    total = strategy.start()
    for client, delta in deltas.items():
        asked = strategy.directive(slots, state, round_number=1, client=client)
        part = cut(delta, asked.rank or slots[0].shape[0])
        update = ClientUpdate(client=client, delta=part, num_examples=client + 1, directive=asked)
        total = strategy.accumulate(total, strategy.prepare(slots, state, update))
    return strategy.apply(slots, state, total)


def rank_of(strategy: Strategy[Any], slots: tuple[Slot, ...], state: State, client: int) -> int | None:
    return strategy.directive(slots, state, round_number=2, client=client).rank


def test_the_penalty_by_hand() -> None:
    """Ranks 2 and 3 of 3 lie beyond floor(0.5 * 3): 0.25 * 2 * ||(3, 4)|| * ||(0, 1; 2, 2)|| = 0.5 * 5 * 3."""
    slots, strategy = slots_of(1, 2, 3), make(Options(prune=0.5, prune_penalty=0.25))
    a, b = (
        nn.Parameter(torch.tensor([[9.0, 9.0], [0.0, 1.0], [2.0, 2.0]])),
        nn.Parameter(torch.tensor([[7.0, 3.0, 4.0]])),
    )

    penalty = strategy.penalty(
        {"q.A": a, "q.B": b, "head": nn.Parameter(torch.ones(3))}, turn_of(slots, Tensors(), None)
    )

    assert penalty is not None
    assert (penalty.shape, penalty.item()) == ((), 7.5)
    by_a, by_b = torch.autograd.grad(penalty, [a, b])
    np.testing.assert_allclose(by_a, 2.5 * np.array([[0, 0], [0, 1], [2, 2]]) / 3, rtol=1e-6)
    np.testing.assert_allclose(by_b, 1.5 * np.array([[0, 3, 4]]) / 5, rtol=1e-6)


@pytest.mark.parametrize("rank", [None, 1, 2])
def test_where_b_is_zero_or_no_rank_can_go_the_penalty_has_no_gradient(rank: int | None) -> None:
    slots, strategy = slots_of(2, 2, 2), make(Options(prune=0.5))
    parameters = {name: nn.Parameter(tensor) for name, tensor in draw(slots).items()}
    parameters["q.B"] = nn.Parameter(torch.zeros(2, 2) if rank != 1 else torch.tensor([[1.0, 0.0], [1.0, 0.0]]))

    penalty = strategy.penalty(parameters, turn_of(slots, Tensors(), rank))

    assert penalty is not None
    penalty.backward()
    assert penalty.item() == 0.0
    assert not parameters["q.A"].grad.any()  # type: ignore[union-attr]
    assert parameters["q.B"].grad is not None
    assert torch.isfinite(parameters["q.B"].grad).all()


def test_ranks_go_for_good_where_they_shrank_and_stay_where_they_grew_or_did_nothing() -> None:
    slots = slots_of(5, 4, 4)
    strategy = make(Options(prune=0.5, client_rank=(4, 4, 4, 1), weighting="uniform"))
    start = draw(slots, "start")
    state = strategy.init(slots, start)
    shrunk, grown = (start.map(lambda tensor, by=by: tensor * by) for by in (-0.5, 0.5))  # type: ignore[misc]

    state = sent(strategy, slots, state, {0: shrunk, 1: grown, 2: start.zeros(), 3: shrunk})
    assert [rank_of(strategy, slots, state, client) for client in range(4)] == [2, 4, 4, 1]

    for expected in (1, 1, 1):
        held = state.adapter.map(lambda tensor: tensor * -0.5)
        state = sent(strategy, slots, state, {0: held})
        assert rank_of(strategy, slots, state, 0) == expected
    state = sent(strategy, slots, state, {0: state.adapter})
    assert rank_of(strategy, slots, state, 0) == 1


def test_a_first_round_in_which_b_is_zero_drops_nothing() -> None:
    slots, strategy = slots_of(5, 4, 4), make(Options(prune=0.5))
    start = draw(slots)
    state = strategy.init(slots, start.replace({"q.B": torch.zeros(5, 4)}))

    state = sent(strategy, slots, state, {0: start, 3: start.zeros()})

    assert rank_of(strategy, slots, state, 0) is None
    assert len(state.memory["ranks"]) == 0


@settings(max_examples=25, deadline=None)
@given(
    rank=st.integers(1, 8),
    share=st.sampled_from([0.1, 0.5, 0.75, 0.99]),
    rounds=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True), min_size=1, max_size=4),
    missing=st.sampled_from(["zero", "keep"]),
    seed=st.integers(0, 1000),
)
def test_rounds_against_numpy(rank: int, share: float, rounds: list[list[int]], missing: Any, seed: int) -> None:
    """Oracle: each client's rank in a dictionary, adapters padded with zeros by hand, and their plain weighted mean."""
    slots = slots_of(3, 4, rank)
    strategy = make(Options(prune=share, missing=missing, weighting="examples"))
    state, held = strategy.init(slots, draw(slots, "start", seed)), dict.fromkeys(range(8), rank)
    for number, cohort in enumerate(rounds):
        before = state.adapter
        deltas = {
            client: before * float(np.cos(1 + client + 3 * number + seed) - 1) + draw(slots, seed, number, client) * 0.1
            for client in sorted(cohort)
        }
        means = {name: np.zeros(tensor.shape) for name, tensor in before.items()}
        for client, delta in deltas.items():
            fallback = max(1, int(share * held[client]))
            received = cut(before, held[client])
            trained = received.to(torch.float64) + cut(delta, held[client]).to(torch.float64)
            if beyond(trained, fallback) < beyond(received, fallback):
                held[client] = fallback
            for name, tensor in (cut(trained, held[client]) if missing == "zero" else cut(delta, held[client])).items():
                where = tuple(slice(size) for size in tensor.shape)
                means[name][where] += (client + 1) / sum(other + 1 for other in cohort) * tensor.numpy()
        most = max(held[client] for client in cohort)

        state = sent(strategy, slots, state, deltas)

        for name, mean in means.items():
            expected = before[name].numpy().astype(np.float64)
            if missing == "keep":
                expected = expected + mean
            else:
                trained_part = {"q.A": np.s_[:most], "q.B": np.s_[:, :most]}.get(name, np.s_[:])
                expected[trained_part] = mean[trained_part]
            np.testing.assert_allclose(state.adapter[name], expected, rtol=1e-5, atol=1e-6)
        assert {client: rank_of(strategy, slots, state, client) or rank for client in range(8)} == held


def test_the_ranks_left_are_in_the_state_and_survive_its_bytes_and_nothing_given_is_written_to() -> None:
    slots, strategy = slots_of(5, 4, 4), make(Options(prune=0.5))
    state = strategy.init(slots, draw(slots))
    shrunk = state.adapter.map(lambda tensor: tensor * -0.5)
    first = sent(strategy, slots, state, {2: shrunk})
    digest = first.memory.digest()
    sent(strategy, slots, first, {0: shrunk, 2: shrunk})
    copy = State(adapter=first.adapter, memory=Tensors(load(save(dict(first.memory)))))

    assert first.memory["ranks"].tolist() == [0, 0, 2]
    assert first.memory.digest() == digest == copy.memory.digest()
    assert [rank_of(strategy, slots, copy, client) for client in range(4)] == [None, None, 2, None]


def test_an_update_of_another_rank_is_refused_by_name() -> None:
    slots, strategy = slots_of(5, 4, 4), make(Options(prune=0.5, client_rank=(3,)))
    state = strategy.init(slots, draw(slots))
    asked = strategy.directive(slots, state, round_number=1, client=7)
    wrong = ClientUpdate(client=7, delta=draw(slots), num_examples=1, directive=asked)

    with pytest.raises(TensorMismatchError, match=r"update of client 7: tensor 0 is q\.A \[4, 4\]"):
        strategy.prepare(slots, state, wrong)


def test_options_without_effect_and_pairs_of_several_ranks_are_refused() -> None:
    assert isinstance(make(Options()), HetLora)
    Options(prune=0.5, missing="keep")
    with pytest.raises(ValidationError, match="prune_penalty has no effect without prune"):
        Options(prune_penalty=0.1)
    for share in (0.0, 1.0):
        with pytest.raises(ValidationError):
            Options(prune=share)
    several = (*slots_of(5, 4, 4)[:2], *(_renamed(slot) for slot in slots_of(5, 4, 3)[:2]))
    with pytest.raises(UnsupportedError, match=r"prune = 0\.5 .* ranks \[3, 4\]"):
        make(Options(prune=0.5)).check(several)


def _renamed(slot: Slot) -> Slot:
    return Slot(name=f"2{slot.name}", shape=slot.shape, algebra=slot.algebra, group="2", role=slot.role)
