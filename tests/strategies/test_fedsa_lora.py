"""fedsa_lora: A is the weighted mean, B and the heads are each client's own."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.adapters.base import Algebra, Slot
from fedpeft.config import Evaluate, Train
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.base import ClientUpdate, State, Turn
from fedpeft.strategies.fedsa_lora import Options, make
from fedpeft.tensors import Tensors

Array = np.ndarray[Any, np.dtype[np.float64]]


def slots(rank: int, d_in: int, d_out: int) -> tuple[Slot, ...]:
    shapes = {"A": (rank, d_in), "B": (d_out, rank)}
    factors = [
        Slot(name=f"q.{role}", shape=shape, algebra=Algebra.BILINEAR, group="q", role=role)
        for role, shape in shapes.items()
    ]
    return (*factors, Slot(name="head", shape=(2,), algebra=Algebra.LINEAR, group="head", role="head"))


def drawn(random: np.random.Generator, rank: int, d_in: int, d_out: int) -> Tensors:
    return Tensors(
        (slot.name, torch.as_tensor(random.normal(size=slot.shape), dtype=torch.float32))
        for slot in slots(rank, d_in, d_out)
    )


def turn_of(size: tuple[int, int, int], received: Tensors, memory: Tensors) -> Turn:
    return Turn(slots=slots(*size), received=received, memory=memory, round_number=1, num_clients=8, learning_rate=0.1)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8)),
    cohorts=st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=4),
    weighting=st.sampled_from(["examples", "uniform"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rounds_with_partial_cohorts_against_plain_arrays(
    size: tuple[int, int, int], cohorts: list[set[int]], weighting: Any, seed: int
) -> None:
    """Each client adds drawn numbers to what it begins with; NumPy keeps a list of own factors beside."""
    random, strategy = np.random.default_rng(seed), make(Options(weighting=weighting))
    initial = drawn(random, *size)
    state, memories = strategy.init(slots(*size), initial), {}
    shared = initial["q.A"].numpy().astype(np.float64)
    own: dict[int, dict[str, Array]] = {}
    for cohort in cohorts:
        total, sums, weights = strategy.start(), np.zeros_like(shared), 0.0
        for k in sorted(cohort):
            steps = drawn(random, *size)
            turn = turn_of(size, initial.replace(state.adapter.select(["q.A"])), memories.get(k, Tensors()))
            parting = strategy.finish(turn, strategy.begin(turn) + steps, num_steps=1)
            memories[k] = parting.memory
            delta = (parting.adapter - turn.received).select(spec.name for spec in strategy.uplink(slots(*size)))
            total = strategy.accumulate(total, ClientUpdate(client=k, delta=delta, num_examples=k + 1))
            mine = own.setdefault(k, {n: initial[n].numpy().astype(np.float64) for n in ("q.B", "head")})
            own[k] = {name: value + steps[name].numpy() for name, value in mine.items()}
            weight = k + 1.0 if weighting == "examples" else 1.0
            sums, weights = sums + weight * (shared + steps["q.A"].numpy()), weights + weight
        state, shared = strategy.apply(slots(*size), state, total), sums / weights

    close(state.adapter["q.A"], shared)
    for k, mine in own.items():
        assert list(memories[k]) == ["q.B", "head"]
        for name, value in mine.items():
            close(memories[k][name], value)
    assert all(torch.equal(state.adapter[name], initial[name]) for name in ("q.B", "head"))


def close(found: torch.Tensor, wanted: Array) -> None:
    assert np.linalg.norm(found.numpy() - wanted) <= 1e-6 * (1.0 + np.linalg.norm(wanted))


def test_one_client_has_its_own_adapter_back_to_the_bit_of_b() -> None:
    random, strategy, size = np.random.default_rng(0), make(Options()), (2, 3, 4)
    initial, trained = drawn(random, *size), drawn(random, *size)
    turn = turn_of(size, initial, Tensors())
    parting = strategy.finish(turn, trained, num_steps=1)
    delta = (trained - initial).select(["q.A"])
    total = strategy.accumulate(strategy.start(), ClientUpdate(client=0, delta=delta, num_examples=3))

    after = strategy.apply(slots(*size), State(adapter=initial), total).adapter
    begun = strategy.begin(turn_of(size, after, parting.memory))

    torch.testing.assert_close(begun["q.A"], trained["q.A"], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(begun[name], trained[name]) for name in ("q.B", "head"))


def test_only_the_floats_of_a_travel() -> None:
    for manifest in (make(Options()).downlink(slots(2, 5, 7)), make(Options()).uplink(slots(2, 5, 7))):
        assert [(spec.name, spec.num_elements) for spec in manifest] == [("q.A", 10)]


def test_a_run_that_would_measure_no_client_is_refused_with_the_remedy() -> None:
    strategy = make(Options())
    strategy.check_settings(train=Train(), evaluate=Evaluate(on_clients=True))

    with pytest.raises(UnsupportedError, match=r"evaluate\.on_clients = False .*; set evaluate\.on_clients = true"):
        strategy.check_settings(train=Train(), evaluate=Evaluate())
