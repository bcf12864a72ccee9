"""ffa_lora and rolora: one factor of each pair held still makes the mean of products the product of means."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedpeft import plugins
from fedpeft.adapters import ia3, lora
from fedpeft.adapters.base import Algebra, Attached, Slot, pairs
from fedpeft.adapters.plan import Plan
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import generator
from fedpeft.strategies.base import ClientUpdate, State, Strategy
from fedpeft.strategies.held import without
from fedpeft.tensors import Tensors
from tests.adapters.models import build

Array = np.ndarray[Any, np.dtype[np.float64]]
A1, B1 = [[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]], [[1.0, 0.0], [2.0, 1.0]]
A2, B2 = [[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]], [[0.0, 1.0], [1.0, -1.0]]
COUNTS = (1, 3)
"""Weights of a quarter and three quarters."""


def strategy_of(name: str, **options: Any) -> Strategy[Any]:
    module = plugins.load("strategy", name)
    made: Strategy[Any] = module.make(module.Options(**options))
    return made


def pair_slots(rank: int = 2, d_in: int = 3, d_out: int = 2) -> tuple[Slot, ...]:
    shapes = {"A": (rank, d_in), "B": (d_out, rank)}
    factors = [
        Slot(name=f"q.{role}", shape=shape, algebra=Algebra.BILINEAR, group="q", role=role)
        for role, shape in shapes.items()
    ]
    local = Slot(name="own", shape=(2,), algebra=Algebra.LOCAL, group="own", role="head")
    return (*factors, local, Slot(name="head", shape=(2,), algebra=Algebra.LINEAR, group="head", role="head"))


def tensors(a: Any, b: Any, head: Any = (0.0, 0.0)) -> Tensors:
    values = {"q.A": a, "q.B": b, "head": head}
    return Tensors((name, torch.as_tensor(value, dtype=torch.float32)) for name, value in values.items())


def one_round(
    strategy: Strategy[Any], slots: tuple[Slot, ...], state: State, clients: list[Tensors], *, round_number: int
) -> tuple[State, list[Tensors]]:
    """Return the state after a round, and what each client would hold at its end; ``clients`` are their own wishes."""
    total, held = strategy.start(), []
    for client, (wished, count) in enumerate(zip(clients, _counts(len(clients)), strict=True)):
        train = strategy.directive(slots, state, round_number=round_number, client=client).train
        assert train is not None
        held.append(state.adapter.replace(wished.select(train)))
        delta = (held[-1] - state.adapter).select(train)
        total = strategy.accumulate(total, ClientUpdate(client=client, delta=delta, num_examples=count))
    return strategy.apply(slots, state, total), held


def _counts(num: int) -> list[int]:
    return [2 * k + 1 for k in range(num)]


def product(adapter: Tensors) -> Array:
    found: Array = adapter["q.B"].numpy().astype(np.float64) @ adapter["q.A"].numpy().astype(np.float64)
    return found


def test_ffa_by_hand() -> None:
    """B = 1/4 B1 + 3/4 B2, and B A1 is the mean of the two products."""
    start = State(adapter=tensors(A1, np.zeros((2, 2))))

    after, _ = one_round(
        strategy_of("ffa_lora"), pair_slots(), start, [tensors(A2, B1), tensors(A2, B2)], round_number=1
    )

    assert after.adapter["q.A"].tolist() == A1
    assert after.adapter["q.B"].tolist() == [[0.25, 0.75], [1.25, -0.5]]
    assert product(after.adapter).tolist() == [[0.25, 0.75, 1.25], [1.25, -0.5, 2.0]]


def test_rolora_by_hand() -> None:
    """Round 1 averages B over A1, round 2 averages A over that B."""
    strategy, clients = strategy_of("rolora"), [tensors(A1, B1), tensors(A2, B2)]
    state = State(adapter=tensors(A1, np.zeros((2, 2))))

    state, _ = one_round(strategy, pair_slots(), state, clients, round_number=1)
    assert (state.adapter["q.A"].tolist(), state.adapter["q.B"].tolist()) == (A1, [[0.25, 0.75], [1.25, -0.5]])
    state, _ = one_round(strategy, pair_slots(), state, clients, round_number=2)
    assert state.adapter["q.A"].tolist() == [[0.25, 0.75, 0.5], [0.75, 0.25, -0.5]]
    assert state.adapter["q.B"].tolist() == [[0.25, 0.75], [1.25, -0.5]]


def test_fedavg_of_both_factors_is_not_exact_on_the_same_numbers() -> None:
    """The residual is 3/16 (B1 - B2)(A1 - A2): the reason why these two strategies exist."""
    strategy, total = strategy_of("fedavg"), strategy_of("fedavg").start()
    for client, (delta, count) in enumerate(zip((tensors(A1, B1), tensors(A2, B2)), COUNTS, strict=True)):
        total = strategy.accumulate(total, ClientUpdate(client=client, delta=delta, num_examples=count))
    after = strategy.apply(pair_slots(), State(adapter=tensors(np.zeros((2, 3)), np.zeros((2, 2)))), total)

    assert product(after.adapter).tolist() == [[0.625, 0.375, -0.25], [-0.0625, 0.8125, 0.875]]
    ideal = np.array(B1) @ np.array(A1) / 4 + 3 * np.array(B2) @ np.array(A2) / 4
    residual = ideal - product(after.adapter)
    assert residual.tolist() == [[0.375, -0.375, 0.0], [-0.1875, 0.1875, 1.125]]
    assert np.linalg.norm(residual) / np.linalg.norm(ideal) == pytest.approx(0.5138390918, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["ffa_lora", "rolora"]),
    num_clients=st.integers(1, 8),
    rank=st.integers(1, 8),
    sides=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 99),
)
def test_every_round_is_exact(name: str, num_clients: int, rank: int, sides: tuple[int, int], seed: int) -> None:
    strategy, slots = strategy_of(name), pair_slots(rank, *sides)
    values = generator(seed, name)

    def drawn() -> Tensors:
        a, b = torch.randn(rank, sides[0], generator=values), torch.randn(sides[1], rank, generator=values)
        return tensors(a, b, torch.randn(2, generator=values))

    state, weights = State(adapter=drawn()), np.array(_counts(num_clients)) / sum(_counts(num_clients))
    for round_number in (1, 2, 3):
        state, held = one_round(
            strategy, slots, state, [drawn() for _ in range(num_clients)], round_number=round_number
        )
        ideal = np.tensordot(weights, np.stack([product(adapter) for adapter in held]), axes=1)
        np.testing.assert_allclose(
            product(state.adapter), ideal, rtol=1e-6, atol=1e-6 * rank * max(1, abs(ideal).max())
        )


def test_ffa_one_step_of_sgd_by_hand() -> None:
    """B <- 0 - eta s G A^T with G = dL/dW, A = A1, s = 8 / 2 and eta = 0.1; A does not move."""
    attached = _one_linear_layer()
    a, b = (f"0.lora_{role}" for role in "AB")
    attached.write(Tensors({a: torch.tensor(A1), b: torch.zeros(2, 2)}))
    strategy, state = strategy_of("ffa_lora"), State(adapter=attached.read())
    train = strategy.directive(attached.slots, state, round_number=1, client=0).train or ()
    gradient = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]])

    outputs = attached.model(torch.eye(3))
    optimizer = torch.optim.SGD([attached.parameters()[name] for name in train], lr=0.1)
    (outputs.T * gradient).sum().backward()
    optimizer.step()

    assert train == (b,)
    torch.testing.assert_close(attached.read()[b], torch.tensor([[-2.8, -2.0], [-0.4, -0.4]]))
    assert attached.read()[a].tolist() == A1


def _one_linear_layer() -> Attached:
    adapter = lora.make(lora.Options(rank=2, alpha=8.0, target_modules=("0",)))
    values = {"rank": 2, "alpha": 8.0, "dropout": 0.0, "rslora": False}
    plan = Plan(adapter="lora", values={**values, "ranks": {"0": 2}, "seed": 0, "transposed": False})
    return adapter.attach(nn.Sequential(nn.Linear(3, 2, bias=False)), plan)


def _rounds(strategy: Strategy[Any], slots: tuple[Slot, ...]) -> Iterator[tuple[str, ...]]:
    state = State(adapter=tensors(A1, B1))
    for round_number in (1, 2, 3, 4):
        trained = {strategy.directive(slots, state, round_number=round_number, client=k).train for k in range(3)}
        assert len(trained) == 1
        yield trained.pop() or ()


@pytest.mark.parametrize(
    ("name", "options", "rounds"),
    [
        ("ffa_lora", {}, "BBBB"),
        ("rolora", {}, "BABA"),
        ("rolora", {"first": "B"}, "BABA"),
        ("rolora", {"first": "A"}, "ABAB"),
    ],
)
def test_heads_train_in_every_round_beside_the_factor_whose_turn_it_is(
    name: str, options: dict[str, Any], rounds: str
) -> None:
    expected = [(f"q.{role}", "head") for role in rounds]

    assert list(_rounds(strategy_of(name, **options), pair_slots())) == expected


def test_ffa_sends_all_but_a_and_rolora_sends_both() -> None:
    sent = {name: [spec.name for spec in strategy_of(name).downlink(pair_slots())] for name in ("ffa_lora", "rolora")}

    assert sent == {"ffa_lora": ["q.B", "head"], "rolora": ["q.A", "q.B", "head"]}


def test_floats_up_are_those_of_the_other_factor() -> None:
    """On a real model: r times the output sides without A, r times the input sides without B."""
    adapter, base = lora.make(lora.Options(rank=3, target_modules=("intermediate.dense",))), build("bert")
    slots = adapter.attach(base, adapter.plan(base, seed=1)).slots
    inputs, outputs = (sum(pair.a.shape[1] for pair in pairs(slots)), sum(pair.b.shape[0] for pair in pairs(slots)))

    assert sum(slot.spec.num_elements for slot in without(slots, "A")) == 3 * outputs
    assert sum(slot.spec.num_elements for slot in without(slots, "B")) == 3 * inputs
    assert inputs != outputs


@pytest.mark.parametrize("name", ["ffa_lora", "rolora"])
def test_an_adapter_without_pairs_is_refused_and_says_what_it_has(name: str) -> None:
    adapter, base = ia3.make(ia3.Options()), build("bert")
    slots = adapter.attach(base, adapter.plan(base, seed=1)).slots

    with pytest.raises(UnsupportedError, match=r"no pairs \(its roles: input_factor, output_factor\); use .*'lora'"):
        strategy_of(name).check(slots)
    with pytest.raises(UnsupportedError, match=r"its roles: none"):
        strategy_of(name).check(())
