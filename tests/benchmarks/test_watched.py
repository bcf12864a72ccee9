"""What a watched strategy is said to lose in a round, against dense float64 NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.watched import Watched
from fedpeft import plugins
from fedpeft.adapters.base import Algebra, Slot
from fedpeft.strategies.base import ClientUpdate, State, Strategy
from fedpeft.tensors import Tensors

Array = np.ndarray[Any, np.dtype[np.float64]]
SCALE, RIDGE = 2.0, 0.01

cases = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8), st.integers(2, 9), st.integers(2, 9))
few = settings(max_examples=25, deadline=None)


def made(name: str) -> Strategy[Any]:
    module: Any = plugins.load("strategy", name)
    strategy: Strategy[Any] = module.make(module.Options())
    return strategy


def factors(draw: np.random.Generator, rank: int, d_in: int, d_out: int) -> tuple[Array, Array]:
    """Return B and A whose values float32 holds."""
    b, a = (draw.normal(size=shape).astype(np.float32).astype(np.float64) for shape in ((d_out, rank), (rank, d_in)))
    return b, a


def tensors(pair: tuple[Array, Array]) -> Tensors:
    return Tensors({"q.A": torch.tensor(pair[1]).float(), "q.B": torch.tensor(pair[0]).float()})


def watched(name: str, case: tuple[int, int, int, int, int]) -> tuple[Watched, list[Array], Array, Array, Array]:
    """Play one round; return the watched strategy, p_k W_k of each client, Bbar, Abar and the start's product."""
    seed, clients, rank, d_in, d_out = case
    draw = np.random.default_rng(seed)
    shapes = {"A": (rank, d_in), "B": (d_out, rank)}
    slots = [
        Slot(name=f"q.{role}", shape=shape, algebra=Algebra.BILINEAR, group="q", role=role, scale=SCALE)
        for role, shape in shapes.items()
    ]
    start = factors(draw, rank, d_in, d_out)
    deltas = [factors(draw, rank, d_in, d_out) for _ in range(clients)]
    counts = draw.integers(1, 50, size=clients)
    shares = counts / counts.sum()
    strategy = Watched(inner=made(name))
    state: State = strategy.init(slots, tensors(start))
    total = strategy.start()
    for client, (delta, count) in enumerate(zip(deltas, counts, strict=True)):
        update = ClientUpdate(client=client, delta=tensors(delta), num_examples=int(count))
        total = strategy.accumulate(total, strategy.prepare(slots, state, update))
    strategy.apply(slots, state, total)
    trained = [(start[0] + delta[0], start[1] + delta[1]) for delta in deltas]
    products = [SCALE * share * (b @ a) for share, (b, a) in zip(shares, trained, strict=True)]
    b_mean, a_mean = (
        np.sum([share * pair[side] for share, pair in zip(shares, trained, strict=True)], axis=0) for side in (0, 1)
    )
    return strategy, products, b_mean, a_mean, SCALE * (start[0] @ start[1])


def expect(strategy: Watched, lost: Array, wanted: Array, start: Array) -> None:
    (loss,) = strategy.losses
    norms = [float(np.linalg.norm(matrix)) for matrix in (lost, wanted, wanted - start)]
    assert loss.whole == pytest.approx(norms[0] / norms[1], rel=1e-4, abs=1e-5)
    assert loss.step == pytest.approx(norms[0] / norms[2], rel=1e-4, abs=1e-5)
    assert len(strategy.seconds) == 1


@few
@given(cases)
def test_fedavg_loses_what_the_product_of_means_misses(case: tuple[int, int, int, int, int]) -> None:
    strategy, products, b, a, start = watched("fedavg", case)
    wanted = np.sum(products, axis=0)
    expect(strategy, wanted - SCALE * (b @ a), wanted, start)


@few
@given(cases)
def test_lora_fair_loses_what_its_ridge_cannot_reach(case: tuple[int, int, int, int, int]) -> None:
    strategy, products, b, a, start = watched("lora_fair", case)
    wanted, gram = np.sum(products, axis=0), a @ a.T
    missed = wanted / SCALE - b @ a
    penalty = RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    repair = np.linalg.solve(gram + penalty, a @ missed.T).T
    expect(strategy, wanted - SCALE * ((b + repair) @ a), wanted, start)


@few
@given(cases)
def test_fedex_lora_loses_nothing(case: tuple[int, int, int, int, int]) -> None:
    strategy, products, _, _, start = watched("fedex_lora", case)
    wanted = np.sum(products, axis=0)
    expect(strategy, np.zeros_like(wanted), wanted, start)
