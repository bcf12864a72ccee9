"""hetlora: unequal ranks padded with zeros, weighted by the norms of the products."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpeft import config
from fedpeft.errors import ConfigError, RunError, TensorMismatchError
from fedpeft.strategies.base import ClientUpdate, State
from fedpeft.strategies.hetlora import HetLora, Options, make
from fedpeft.strategies.ranks import sliced
from fedpeft.tensors import Tensors
from tests.conftest import TINY_VIT, merged
from tests.strategies.test_held import A1, A2, B1, B2, pair_slots, tensors
from tests.strategies.test_ranks import draw, slots_of

Array = np.ndarray[Any, np.dtype[np.float64]]


def updates_of(
    strategy: HetLora, slots: Any, state: State, deltas: list[Tensors], counts: list[int] | None = None
) -> list[ClientUpdate]:
    """Return prepared updates: what clients that hold their ranks would send."""
    made = []
    for client, delta in enumerate(deltas):
        asked = strategy.directive(slots, state, round_number=1, client=client)
        part = sliced(delta, slots, rank=asked.rank, held=asked.held)
        count = counts[client] if counts else 1
        update = ClientUpdate(client=client, delta=part, num_examples=count, directive=asked)
        made.append(strategy.prepare(slots, state, update))
    return made


def applied(strategy: HetLora, slots: Any, state: State, updates: list[ClientUpdate]) -> Tensors:
    total = strategy.start()
    for update in updates:
        total = strategy.accumulate(total, update)
    return strategy.apply(slots, state, total).adapter


def one_round(
    strategy: HetLora, slots: Any, state: State, deltas: list[Tensors], counts: list[int] | None = None
) -> Tensors:
    return applied(strategy, slots, state, updates_of(strategy, slots, state, deltas, counts))


ZERO = tensors(np.zeros((2, 3)), np.zeros((2, 2)))
CLIENTS = [tensors(A1, B1, [1, 0]), tensors(A2, B2, [0, 1])]


def test_two_clients_by_hand() -> None:
    """B1 A1 = [[1,0,2],[2,1,5]] has norm sqrt 35, B2 A2 = [[1,0,-1],[-1,1,1]] has norm sqrt 5."""
    updates = updates_of(make(Options()), pair_slots(), State(adapter=ZERO), CLIENTS)

    assert [update.weight for update in updates] == pytest.approx([35**0.5, 5**0.5])
    found = applied(make(Options()), pair_slots(), State(adapter=ZERO), updates)
    p = 35**0.5 / (35**0.5 + 5**0.5)
    np.testing.assert_allclose(found["q.A"], p * np.array(A1) + (1 - p) * np.array(A2), rtol=1e-6)
    np.testing.assert_allclose(found["q.B"], p * np.array(B1) + (1 - p) * np.array(B2), rtol=1e-6)
    np.testing.assert_allclose(found["head"], [p, 1 - p], rtol=1e-6)


def test_a_rank_that_some_lack_shrinks_or_stays() -> None:
    state = State(adapter=CLIENTS[0])
    for missing, second_row in (("zero", [0.0, 0.75, 0.75]), ("keep", [0.0, 1.0, 1.0])):
        strategy = make(Options(client_rank=(1, 2), weighting="examples", missing=missing))  # type: ignore[arg-type]
        found = one_round(strategy, pair_slots(), state, [ZERO, ZERO], [1, 3])
        assert found["q.A"].tolist() == [A1[0], second_row]
        assert found["head"].tolist() == [1, 0]


@pytest.mark.parametrize("missing", ["zero", "keep"])
def test_a_rank_that_nobody_of_the_round_holds_keeps_its_bits(missing: Any) -> None:
    slots = slots_of((4, 6))
    state = State(adapter=draw(slots, "adapter"))

    found = one_round(
        make(Options(client_rank=(2, 1), missing=missing)), slots, state, [draw(slots, client) for client in range(2)]
    )

    for name, cut in (("0.A", np.s_[2:]), ("0.B", np.s_[:, 2:]), ("1.A", np.s_[2:]), ("1.B", np.s_[:, 2:])):
        assert found[name][cut].numpy().tobytes() == state.adapter[name][cut].numpy().tobytes()
        assert not torch.equal(found[name], state.adapter[name])


def test_clients_without_a_product_count_alike_among_themselves_and_else_for_nothing() -> None:
    slots, strategy = pair_slots(), make(Options())
    still = [tensors(A1, np.zeros((2, 2)), [1, 0]), tensors(A2, np.zeros((2, 2)), [0, 1])]

    alone = one_round(strategy, slots, State(adapter=ZERO), still, [1, 9])
    for order in ((0, 1, 2), (2, 0, 1), (0, 2, 1)):
        deltas = [[*still, CLIENTS[0]][index] for index in order]
        mixed = one_round(strategy, slots, State(adapter=ZERO), deltas)
        assert (mixed - CLIENTS[0]).norm() < 1e-6

    np.testing.assert_allclose(alone["q.A"], (np.array(A1) + A2) / 2)
    assert alone["head"].tolist() == [0.5, 0.5]


def test_one_client_gives_back_its_adapter() -> None:
    slots = slots_of((3, 5))
    state, delta = State(adapter=draw(slots, "adapter")), draw(slots, "delta")

    for weighting in ("norm", "examples", "uniform"):
        found = one_round(make(Options(weighting=weighting)), slots, state, [delta])  # type: ignore[arg-type]
        assert found == state.adapter + delta


def _cut(tensor: torch.Tensor, name: str, rank: int) -> Array:
    """Return a float64 copy with zeros beyond a rank."""
    found = tensor.numpy().astype(np.float64)
    if name.endswith("A"):
        found[rank:] = 0
    elif name.endswith("B"):
        found[:, rank:] = 0
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=8),
    st.sampled_from(["norm", "examples", "uniform"]),
    st.sampled_from(["zero", "keep"]),
    st.lists(st.integers(1, 40), min_size=8, max_size=8),
)
def test_a_round_against_numpy(ranks: list[int], weighting: Any, missing: Any, counts: list[int]) -> None:
    slots, counts = slots_of((8, 8)), counts[: len(ranks)]
    strategy = make(Options(client_rank=tuple(ranks), weighting=weighting, missing=missing))
    state, deltas = State(adapter=draw(slots, "adapter")), [draw(slots, client) for client in range(len(ranks))]

    strategy.check(slots)
    found = one_round(strategy, slots, state, deltas, counts)

    held = [
        {name: _cut(state.adapter[name] + delta[name], name, rank) for name in delta}
        for delta, rank in zip(deltas, ranks, strict=True)
    ]
    weights = {
        "norm": [
            np.hypot(*(np.linalg.norm((1 + 2 * g) * own[f"{g}.B"] @ own[f"{g}.A"]) for g in (0, 1))) for own in held
        ],
        "examples": counts,
        "uniform": [1] * len(ranks),
    }[weighting]
    shares = np.array(weights) / np.sum(weights)
    for name in found:
        before = state.adapter[name].numpy().astype(np.float64)
        beyond = before - _cut(state.adapter[name], name, max(ranks))
        mean: Any = sum(p * own[name] for p, own in zip(shares, held, strict=True)) + beyond
        moves: Any = sum(
            p * _cut(delta[name], name, rank) for p, delta, rank in zip(shares, deltas, ranks, strict=True)
        )
        expected = mean if missing == "zero" else before + moves
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_ranks_go_round_among_the_clients() -> None:
    slots, strategy = slots_of((4,)), make(Options(client_rank=(1, 4)))
    state = State(adapter=draw(slots))

    found = [strategy.directive(slots, state, round_number=1, client=client).rank for client in range(5)]

    assert found == [1, 4, 1, 4, 1]
    assert make(Options()).directive(slots, state, round_number=1, client=0).rank is None


def test_an_update_of_another_rank_or_without_a_weight_is_refused() -> None:
    slots, strategy = slots_of((4,)), make(Options(client_rank=(2,)))
    state = State(adapter=draw(slots))
    asked = strategy.directive(slots, state, round_number=1, client=0)
    whole = ClientUpdate(client=7, delta=draw(slots), num_examples=1, directive=asked)

    with pytest.raises(TensorMismatchError, match=r"update of client 7: tensor 0 is 0\.A \[4, 3\]"):
        strategy.prepare(slots, state, whole)
    with pytest.raises(RunError, match="client 7 has no weight"):
        strategy.accumulate(strategy.start(), whole)
    with pytest.raises(RunError, match="no mean of 0 updates"):
        strategy.apply(slots, state, strategy.start())


def test_options_without_effect_or_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="no effect without client_rank"):
        Options(missing="keep")
    with pytest.raises(ValidationError):
        Options(client_rank=())
    with pytest.raises(ConfigError, match=r"strategy\.client_rank"):
        config.parse(merged(TINY_VIT, {"strategy": {"name": "hetlora", "client_rank": [2, 0]}}))
    with pytest.raises(ConfigError, match=r"strategy\.client_rank: unknown key .*: fedex_lora, .* hetlora$"):
        config.parse(merged(TINY_VIT, {"strategy": {"name": "fedavg", "client_rank": [2]}}))
