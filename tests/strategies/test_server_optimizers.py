"""fedavgm, fedadam, fedyogi and fedadagrad against their papers' formulas in NumPy, and against numbers by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpeft import plugins
from fedpeft.errors import RunError, TensorMismatchError
from fedpeft.seeds import generator
from fedpeft.strategies.base import ClientUpdate, State, Strategy
from fedpeft.tensors import Tensors

ADAPTIVE = ("fedadam", "fedyogi", "fedadagrad")
ALL = ("fedavgm", *ADAPTIVE)
Array = np.ndarray[Any, np.dtype[np.float64]]


def strategy_of(name: str, **options: Any) -> Strategy[Any]:
    module = plugins.load("strategy", name)
    made: Strategy[Any] = module.make(module.Options(**options))
    return made


def one_round(strategy: Strategy[Any], state: State, deltas: list[Tensors], counts: list[int] | None = None) -> State:
    total = strategy.start()
    for client, (delta, count) in enumerate(zip(deltas, counts or [1] * len(deltas), strict=True)):
        total = strategy.accumulate(total, ClientUpdate(client=client, delta=delta, num_examples=count))
    return strategy.apply((), state, total)


def run(strategy: Strategy[Any], start: list[float], *rounds: list[float]) -> list[list[float]]:
    """Return the adapter after each round of one client's deltas."""
    state, found = strategy.init((), Tensors({"w": torch.tensor(start)})), []
    for delta in rounds:
        state = one_round(strategy, state, [Tensors({"w": torch.tensor(delta)})])
        found.append(state.adapter["w"].tolist())
    return found


def test_fedavgm_by_hand() -> None:
    """v = 4; then 0.5 * 4 + 1 = 3; then 0.5 * 3 - 2 = -0.5; each halved by the learning rate, from 10."""
    strategy = strategy_of("fedavgm", momentum=0.5, learning_rate=0.5)

    assert run(strategy, [10.0], [4.0], [1.0], [-2.0]) == [[12.0], [13.5], [13.25]]


def test_fedadam_by_hand() -> None:
    """tau 1: v = 0.5 + 0.5 * 49 = 25, m = 3.5, step 12 * 3.5 / 6 = 7; v = 12.5 + 12.5, m = 1.75 - 2.5, step -1.5."""
    strategy = strategy_of("fedadam", learning_rate=12.0, beta1=0.5, beta2=0.5, tau=1.0)

    assert run(strategy, [10.0], [7.0], [-5.0]) == [[17.0], [15.5]]


def test_fedyogi_by_hand() -> None:
    """tau 5, v = 25: D = 3 shrinks it to 16, D = 12 raises it to 169, D = 5 equals it and leaves it at 25.

    Steps 6 * 1.5 / (4 + 5), 6 * 6 / (13 + 5), 6 * 2.5 / (5 + 5). With beta2 = 0.75, D = 4: 25 - 0.25 * 16 = 21.
    """
    strategy = strategy_of("fedyogi", learning_rate=6.0, beta1=0.5, beta2=0.0, tau=5.0)
    slow = strategy_of("fedyogi", beta2=0.75, tau=5.0)
    state = slow.init((), Tensors({"w": torch.zeros(1)}))

    assert run(strategy, [10.0, 20.0, 0.0], [3.0, 12.0, 5.0]) == [[11.0, 22.0, 1.5]]
    assert one_round(slow, state, [Tensors({"w": torch.tensor([4.0])})]).memory["variance/w"].tolist() == [21.0]


def test_fedadagrad_by_hand() -> None:
    """tau 3: v = 9 + 16 = 25, step 4 * 4 / 8 = 2; v = 25 + 144 = 169, step 4 * 12 / 16 = 3."""
    strategy = strategy_of("fedadagrad", learning_rate=4.0, tau=3.0)

    assert run(strategy, [1.0], [4.0], [12.0]) == [[3.0], [6.0]]


def _fedavgm(w: Array, deltas: list[Array], beta: float) -> Array:
    v = np.zeros_like(w)
    for delta in deltas:
        v = beta * v + delta
        w = w + v
    return w


def _adaptive(w: Array, deltas: list[Array], next_v: Callable[[Array, Array], Array], rates: dict[str, float]) -> Array:
    m, v = np.zeros_like(w), np.full_like(w, rates["tau"] ** 2)
    for delta in deltas:
        m = rates["beta1"] * m + (1 - rates["beta1"]) * delta
        v = next_v(v, delta)
        w = w + rates["learning_rate"] * m / (np.sqrt(v) + rates["tau"])
    return w


def expected(name: str, w: Array, deltas: list[Array], rates: dict[str, float]) -> Array:
    beta2 = rates.get("beta2", 0.0)
    rules: dict[str, Callable[[Array, Array], Array]] = {
        "fedadam": lambda v, d: beta2 * v + (1 - beta2) * d**2,
        "fedyogi": lambda v, d: v - (1 - beta2) * d**2 * np.sign(v - d**2),
        "fedadagrad": lambda v, d: v + d**2,
    }
    return _fedavgm(w, deltas, rates["momentum"]) if name == "fedavgm" else _adaptive(w, deltas, rules[name], rates)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(ALL),
    shape=st.lists(st.integers(1, 8), min_size=1, max_size=2),
    num_clients=st.integers(1, 8),
    num_rounds=st.integers(1, 4),
    beta=st.floats(0.1, 0.95),
    seed=st.integers(0, 99),
)
def test_rounds_are_those_of_numpy(
    name: str, shape: list[int], num_clients: int, num_rounds: int, beta: float, seed: int
) -> None:
    adaptive = {"learning_rate": 0.3, "beta1": beta, "beta2": 0.9, "tau": 0.01}
    rates = {"momentum": beta} if name == "fedavgm" else adaptive
    if name == "fedadagrad":
        del rates["beta2"]
    strategy, values = strategy_of(name, weighting="uniform", **rates), generator(seed, name)
    state = strategy.init((), Tensors({"w": torch.randn(shape, generator=values)}))
    start, means = state.adapter["w"].numpy().astype(np.float64), []
    for _ in range(num_rounds):
        deltas = [torch.randn(shape, generator=values) for _ in range(num_clients)]
        means.append(np.mean([delta.numpy().astype(np.float64) for delta in deltas], axis=0))
        state = one_round(strategy, state, [Tensors({"w": delta}) for delta in deltas])

    # one rounding to float32 a round
    np.testing.assert_allclose(state.adapter["w"].numpy(), expected(name, start, means, rates), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("name", ALL)
def test_clients_weigh_by_their_examples_or_alike(name: str) -> None:
    """Deltas 4 and 8 of clients with 1 and 3 examples have the mean 7, uniformly 6."""
    deltas = [Tensors({"w": torch.tensor([value])}) for value in (4.0, 8.0)]
    for weighting, mean in (("examples", 7.0), ("uniform", 6.0)):
        strategy = strategy_of(name, weighting=weighting)
        state = strategy.init((), Tensors({"w": torch.zeros(1)}))
        found = one_round(strategy, state, deltas, [1, 3]).memory["momentum/w"].item()
        share = {"fedavgm": 1.0, "fedadagrad": 1.0}.get(name, 0.1)
        assert found == pytest.approx(share * mean, rel=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_moments_are_float64_and_of_the_adapter_s_size(name: str) -> None:
    strategy = strategy_of(name)
    state = strategy.init((), Tensors({"a": torch.ones(2, 3), "b": torch.ones(4)}))
    kinds = ["momentum"] if name == "fedavgm" else ["momentum", "variance"]

    after = one_round(strategy, state, [state.adapter] * 5)

    for memory in (state.memory, after.memory):
        assert list(memory) == [f"{kind}/{slot}" for kind in kinds for slot in ("a", "b")]
        assert {tensor.dtype for tensor in memory.values()} == {torch.float64}
        assert memory.num_elements == len(kinds) * 10


@pytest.mark.parametrize("name", ALL)
def test_a_slot_nobody_trained_keeps_its_value_and_its_moments(name: str) -> None:
    strategy = strategy_of(name)
    state = strategy.init((), Tensors({"a": torch.ones(2), "b": torch.ones(2)}))
    state = one_round(strategy, state, [state.adapter])

    after = one_round(strategy, state, [Tensors({"b": torch.full((2,), 2.0)})])

    for before, now in ((state.adapter, after.adapter), (state.memory, after.memory)):
        changed = {slot for slot in before if not torch.equal(before[slot], now[slot])}
        assert changed == {slot for slot in before if slot.endswith("b")}


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_huge_and_tiny_updates_leave_finite_moments(name: str, size: float) -> None:
    """In float32 the square of 1e30 is infinite and that of 1e-30 is lost."""
    strategy = strategy_of(name, tau=1e-30, learning_rate=1.0, beta1=0.0)
    state = strategy.init((), Tensors({"w": torch.zeros(1)}))

    after = one_round(strategy, state, [Tensors({"w": torch.tensor([size])})])

    after.memory.require_finite(where="memory")
    assert 0.4 < after.adapter["w"].item() < 10.1


@pytest.mark.parametrize("name", ALL)
def test_no_weight_and_foreign_slots_are_refused(name: str) -> None:
    strategy = strategy_of(name)
    state = strategy.init((), Tensors({"w": torch.zeros(1)}))

    with pytest.raises(RunError, match="expected weight > 0"):
        one_round(strategy, state, [state.adapter], [0])
    with pytest.raises(TensorMismatchError, match="'other'"):
        one_round(strategy, state, [Tensors({"other": torch.zeros(1)})])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedavgm", {"momentum": 0.0}),
        ("fedavgm", {"momentum": 1.0}),
        ("fedavgm", {"learning_rate": 0.0}),
        ("fedadam", {"tau": 0.0}),
        ("fedadam", {"beta2": 1.0}),
        ("fedyogi", {"beta1": -0.1}),
        ("fedadagrad", {"learning_rate": -1.0}),
        ("fedadagrad", {"beta2": 0.9}),
    ],
)
def test_options_out_of_bounds_or_without_effect_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        strategy_of(name, **options)
