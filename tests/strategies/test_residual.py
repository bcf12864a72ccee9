"""fedex_lora and flora: the mean of products is exact, because frozen weights take what the factors cannot hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from fedpeft import plugins
from fedpeft.adapters.base import Algebra, Slot
from fedpeft.errors import TensorMismatchError
from fedpeft.seeds import generator
from fedpeft.strategies import residual
from fedpeft.strategies.base import ClientUpdate, State, Strategy
from fedpeft.tensors import Spec, Tensors

Array = np.ndarray[Any, np.dtype[np.float64]]
A1, B1 = [[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]], [[1.0, 0.0], [2.0, 1.0]]
A2, B2 = [[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]], [[0.0, 1.0], [1.0, -1.0]]
IDEAL = [[1, 0, -0.25], [-0.25, 1, 2]]
"""1/4 B1 A1 + 3/4 B2 A2."""
MISSING = [[0.375, -0.375, 0], [-0.1875, 0.1875, 1.125]]
"""IDEAL less the product of the means."""
NAMES = ("fedex_lora", "flora")
both = pytest.mark.parametrize("name", NAMES)
sizes = st.integers(min_value=1, max_value=8)


def strategy_of(name: str, **options: Any) -> Strategy[Any]:
    module = plugins.load("strategy", name)
    made: Strategy[Any] = module.make(module.Options(**options))
    return made


def slots_of(d_out: int, d_in: int, rank: int, scale: float = 1.0) -> tuple[Slot, ...]:
    shapes = {"A": (rank, d_in), "B": (d_out, rank)}
    factors = [
        Slot(name=f"q.{role}", shape=shape, algebra=Algebra.BILINEAR, group="q", role=role, scale=scale)
        for role, shape in shapes.items()
    ]
    return (*factors, Slot(name="head", shape=(2,), algebra=Algebra.LINEAR, group="head", role="head"))


def tensors(a: Any, b: Any, head: Any = (0.0, 0.0)) -> Tensors:
    values = {"q.A": a, "q.B": b, "head": head}
    return Tensors((name, torch.as_tensor(np.asarray(value), dtype=torch.float32)) for name, value in values.items())


def started(strategy: Strategy[Any], slots: Sequence[Slot], adapter: Tensors) -> State:
    strategy.check(slots)
    return strategy.init(slots, adapter)


def one_round(
    strategy: Strategy[Any], slots: Sequence[Slot], state: State, clients: Sequence[Tensors], counts: Sequence[int]
) -> State:
    """Return the state after clients trained to what is given."""
    total = strategy.start()
    for client, (adapter, count) in enumerate(zip(clients, counts, strict=True)):
        update = ClientUpdate(client=client, delta=adapter - state.adapter, num_examples=count)
        total = strategy.accumulate(total, update)
    return strategy.apply(slots, state, total)


def sent(strategy: Strategy[Any], slots: Sequence[Slot], state: State) -> Tensors:
    return strategy.residual_parts(slots, state)


def added(strategy: Strategy[Any], slots: Sequence[Slot], state: State) -> Array:
    """The residual as a client rebuilds it."""
    found: Array = strategy.residuals(slots, sent(strategy, slots, state))["q"].numpy().astype(np.float64)
    return found


def product(adapter: Tensors) -> Array:
    found: Array = adapter["q.B"].numpy().astype(np.float64) @ adapter["q.A"].numpy().astype(np.float64)
    return found


def drawn(seed: int, *purpose: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, *purpose))


def adapters(seed: int, round_number: int, num: int, sides: tuple[int, int, int]) -> list[Tensors]:
    d_out, d_in, rank = sides
    return [
        tensors(
            drawn(seed, round_number, k, 0, shape=(rank, d_in)),
            drawn(seed, round_number, k, 1, shape=(d_out, rank)),
            drawn(seed, round_number, k, 2, shape=(2,)),
        )
        for k in range(num)
    ]


def relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-12))


def test_fedex_by_hand() -> None:
    strategy, slots = strategy_of("fedex_lora"), slots_of(2, 3, 2)
    state = started(strategy, slots, tensors(np.zeros((2, 3)), np.zeros((2, 2))))

    after = one_round(strategy, slots, state, [tensors(A1, B1), tensors(A2, B2)], [1, 3])

    assert after.adapter["q.A"].tolist() == [[0.25, 0.75, 0.5], [0.75, 0.25, -0.5]]
    assert after.adapter["q.B"].tolist() == [[0.25, 0.75], [1.25, -0.5]]
    np.testing.assert_allclose(added(strategy, slots, after), MISSING, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(product(after.adapter) + added(strategy, slots, after), IDEAL, rtol=1e-6, atol=1e-7)


def test_flora_by_hand() -> None:
    strategy, slots = strategy_of("flora"), slots_of(2, 3, 2)
    state = started(strategy, slots, tensors(A1, np.zeros((2, 2))))

    clients = [tensors(A1, B1, (1.0, 0.0)), tensors(A2, B2, (0.0, 2.0))]
    after = one_round(strategy, slots, state, clients, [1, 3])

    np.testing.assert_allclose(added(strategy, slots, after), IDEAL, rtol=1e-6, atol=1e-7)
    assert not after.adapter["q.B"].any()
    assert after.adapter["head"].tolist() == [0.25, 1.5]


def test_the_weight_is_on_one_factor_only_and_the_scale_is_folded_in_once() -> None:
    for name in NAMES:
        strategy, slots = strategy_of(name), slots_of(2, 3, 2, scale=4.0)
        state = started(strategy, slots, tensors(np.zeros((2, 3)), np.zeros((2, 2))))

        after = one_round(strategy, slots, state, [tensors(A1, B1), tensors(A2, B2)], [1, 3])

        effective = 4.0 * product(after.adapter) + added(strategy, slots, after)
        np.testing.assert_allclose(effective, 4.0 * np.array(IDEAL), rtol=1e-6, atol=1e-6)


@both
@settings(max_examples=25, deadline=None)
@given(num=sizes, d_out=sizes, d_in=sizes, rank=sizes, seed=st.integers(0, 1000), uniform=st.booleans())
def test_three_rounds_are_the_mean_of_the_clients_models(
    name: str, num: int, d_out: int, d_in: int, rank: int, seed: int, uniform: bool
) -> None:
    """Oracle: carry the dense weight and average the clients' dense weights.

    Factors are kept in float32, so the error is of their size, though terms of the product may cancel.
    """
    scale, counts = 2.0, [3 * k + 1 for k in range(num)]
    strategy = strategy_of(name, weighting="uniform" if uniform else "examples")
    slots, sides = slots_of(d_out, d_in, rank, scale), (d_out, d_in, rank)
    weights = np.full(num, 1 / num) if uniform else np.array(counts) / sum(counts)
    state = started(strategy, slots, adapters(seed, 0, 1, sides)[0])
    ideal_residual = np.zeros((d_out, d_in))
    for round_number in (1, 2, 3):
        clients = adapters(seed, round_number, num, sides)
        held = [state.adapter.to(torch.float64) + (client - state.adapter).to(torch.float64) for client in clients]
        ideal = ideal_residual + sum(w * scale * product(c) for w, c in zip(weights, held, strict=True))

        state = one_round(strategy, slots, state, clients, counts)

        norm = max(scale * np.linalg.norm(client["q.B"]) * np.linalg.norm(client["q.A"]) for client in held)
        found = added(strategy, slots, state) + scale * product(state.adapter)
        assert np.linalg.norm(found - ideal) <= 1e-6 * round_number * max(norm, float(np.linalg.norm(ideal)))
        ideal_residual = ideal - scale * product(state.adapter)
        if name == "fedex_lora":
            for slot in ("q.A", "q.B", "head"):
                mean = sum(w * c[slot].numpy().astype(np.float64) for w, c in zip(weights, held, strict=True))
                np.testing.assert_allclose(state.adapter[slot].numpy(), mean, rtol=1e-5, atol=1e-6)


@both
@settings(max_examples=25, deadline=None)
@given(num=sizes, d_out=sizes, d_in=sizes, rank=sizes, seed=st.integers(0, 1000))
def test_floats_down_are_those_of_the_table_after_one_round_and_bounded_after_more(
    name: str, num: int, d_out: int, d_in: int, rank: int, seed: int
) -> None:
    strategy, slots, sides = strategy_of(name), slots_of(d_out, d_in, rank), (d_out, d_in, rank)
    state = started(strategy, slots, adapters(seed, 0, 1, sides)[0])
    assert sent(strategy, slots, state).num_elements == 0
    per_round, matrix = (num - (name == "fedex_lora")) * rank * (d_out + d_in), d_out * d_in

    for round_number in (1, 2, 3):
        state = one_round(strategy, slots, state, adapters(seed, round_number, num, sides), [1] * num)

        assert sent(strategy, slots, state).num_elements == min(round_number * per_round, matrix)
        held = sum(tensor.numel() for tensor in state.memory.values())
        assert held < 2 * matrix or held == matrix


@both
@settings(max_examples=25, deadline=None)
@given(num=sizes, d_out=sizes, d_in=sizes, rank=sizes, seed=st.integers(0, 1000))
def test_the_matrix_held_is_to_the_bit_what_clients_rebuild_and_what_they_take(
    name: str, num: int, d_out: int, d_in: int, rank: int, seed: int
) -> None:
    strategy, slots, sides = strategy_of(name), slots_of(d_out, d_in, rank), (d_out, d_in, rank)
    state = started(strategy, slots, adapters(seed, 0, 1, sides)[0])
    for round_number in (0, 1, 2):
        parts = sent(strategy, slots, state)
        copy = Tensors((key, load(save(dict(parts)))[key]) for key in parts)
        assert strategy.residual_manifest(slots, parts.manifest()) == parts.manifest()
        assert torch.equal(strategy.residuals(slots, copy)["q"], state.memory["residual.q"])
        state = one_round(strategy, slots, state, adapters(seed, round_number, num, sides), [1] * num)


@both
@pytest.mark.parametrize("order", [(2, 0, 1), (2, 1, 0)])
def test_the_order_of_clients_changes_no_bit(name: str, order: tuple[int, ...]) -> None:
    strategy, slots, sides = strategy_of(name), slots_of(16, 12, 2), (16, 12, 2)
    state, clients = started(strategy, slots, adapters(1, 0, 1, sides)[0]), adapters(1, 1, 3, sides)
    updates = [
        ClientUpdate(client=k, delta=client - state.adapter, num_examples=k + 1) for k, client in enumerate(clients)
    ]
    found = []
    for given_order in ((0, 1, 2), order):
        total = strategy.start()
        for k in given_order:
            total = strategy.accumulate(total, updates[k])
        found.append(strategy.apply(slots, state, total))

    assert found[0] == found[1]


def test_one_client_or_clients_that_agree_leave_no_residual_with_fedex() -> None:
    strategy, slots, sides = strategy_of("fedex_lora"), slots_of(16, 12, 2), (16, 12, 2)
    state, (client,) = started(strategy, slots, adapters(1, 0, 1, sides)[0]), adapters(1, 1, 1, sides)
    for clients in ([client], [client] * 4):
        after = one_round(strategy, slots, state, clients, [1] * len(clients))

        assert sent(strategy, slots, after).num_elements == 0
        assert relative(product(after.adapter), product(client)) < 1e-6


@settings(max_examples=25, deadline=None)
@given(num=sizes, d_out=sizes, d_in=sizes, rank=sizes, cut=sizes, seed=st.integers(0, 1000))
def test_max_rank_keeps_the_best_approximation(num: int, d_out: int, d_in: int, rank: int, cut: int, seed: int) -> None:
    """Eckart and Young: the error is what NumPy's dense SVD leaves out."""
    whole, some = strategy_of("fedex_lora"), strategy_of("fedex_lora", max_rank=cut)
    slots, sides = slots_of(d_out, d_in, rank), (d_out, d_in, rank)
    state, clients = started(whole, slots, adapters(seed, 0, 1, sides)[0]), adapters(seed, 1, num, sides)
    states = [one_round(strategy, slots, state, clients, [1] * num) for strategy in (whole, some)]
    exact, found = (added(whole, slots, after) for after in states)

    u, sigma, vt = np.linalg.svd(exact)
    best = (u[:, : len(sigma)] * sigma)[:, :cut] @ vt[: len(sigma)][:cut]

    error, least = (float(np.linalg.norm(exact - approximation)) for approximation in (found, best))
    assert error == pytest.approx(least, rel=1e-4, abs=1e-5 * max(1.0, float(np.linalg.norm(exact))))
    assert np.linalg.matrix_rank(found, tol=1e-5 * max(1.0, float(np.linalg.norm(exact)))) <= cut
    assert states[0].adapter == states[1].adapter


def test_flora_draws_a_new_a_each_round_and_the_same_one_again_whatever_was_trained() -> None:
    strategy, slots, sides = strategy_of("flora"), slots_of(16, 64, 4), (16, 64, 4)
    chains = []
    for seed in (1, 2):
        state, chain = started(strategy, slots, adapters(0, 0, 1, sides)[0]), []
        for round_number in (1, 2, 3):
            state = one_round(strategy, slots, state, adapters(seed, round_number, 2, sides), [1, 2])
            chain.append(state.adapter["q.A"])
        chains.append(chain)
    other = one_round(strategy, slots, started(strategy, slots, adapters(9, 0, 1, sides)[0]), [state.adapter], [1])

    assert all(torch.equal(one, two) for one, two in zip(*chains, strict=True))
    assert len({tuple(a.flatten().tolist()) for a in (*chains[0], other.adapter["q.A"])}) == 4
    assert all(0.8 / 8 < float(a.abs().max()) <= 1 / 8 for a in chains[0])


@both
def test_a_reply_of_another_shape_is_refused_by_name(name: str) -> None:
    strategy, slots, sides = strategy_of(name), slots_of(4, 5, 2), (4, 5, 2)
    state = started(strategy, slots, adapters(1, 0, 1, sides)[0])
    wrong = Tensors({**state.adapter, "q.B": torch.zeros(4, 1)})
    total = strategy.accumulate(strategy.start(), ClientUpdate(client=0, delta=wrong, num_examples=1))

    with pytest.raises(TensorMismatchError, match=r"q\.B \[4, 1\]"):
        strategy.apply(slots, state, total)


SIDES = (6, 12, 2)
"""Factors are fewer floats than the matrix below rank 4."""


def spec(name: str, *shape: int, dtype: str = "float32") -> Spec:
    return Spec(name=name, shape=shape, dtype=dtype)


@pytest.mark.parametrize(
    "claimed",
    [
        [spec("residual.q", 6, 12)],
        *([spec("residual_B.q", 6, rank), spec("residual_A.q", rank, 12)] for rank in range(4)),
    ],
)
def test_clients_take_the_matrix_and_factors_that_save_floats(claimed: list[Spec]) -> None:
    assert residual.manifest(slots_of(*SIDES), claimed) == tuple(claimed)


@pytest.mark.parametrize(
    "claimed",
    [
        [],
        [spec("residual.q", 12, 6)],
        [spec("residual.q", 6, 12, dtype="float64")],
        [spec("residual.k", 6, 12)],
        [spec("residual.q", 6, 12), spec("residual.k", 6, 12)],
        [spec("residual_B.q", 6, 1)],
        [spec("residual_A.q", 1, 12), spec("residual_B.q", 6, 1)],
        [spec("residual_B.q", 6, 1), spec("residual_A.q", 2, 12)],
        [spec("residual_B.q", 7, 1), spec("residual_A.q", 1, 12)],
        [spec("residual_B.q", 6, 1, 1), spec("residual_A.q", 1, 12)],
        [spec("residual_B.q", 6, 4), spec("residual_A.q", 4, 12)],
        [spec("residual_B.q", 6, 1 << 40), spec("residual_A.q", 1 << 40, 12)],
        [spec("residual_B.q", 6, 1, dtype="bfloat16"), spec("residual_A.q", 1, 12)],
    ],
)
def test_clients_take_nothing_else(claimed: list[Spec]) -> None:
    assert residual.manifest(slots_of(*SIDES), claimed) != tuple(claimed)
