"""scaffold against NumPy on quadratic problems, by hand, and its correction as a gradient."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedpeft.adapters.base import Algebra, Slot
from fedpeft.config import Evaluate, Train
from fedpeft.errors import TensorMismatchError, UnsupportedError
from fedpeft.strategies.base import ClientUpdate, State, Turn
from fedpeft.strategies.scaffold import Options, Scaffold, make
from fedpeft.tensors import Tensors

Array = np.ndarray[Any, np.dtype[np.float64]]
PLAIN = Train(optimizer="sgd", learning_rate=0.1)


@dataclass(frozen=True)
class Quadratics:
    """Client k minimises 1/2 sum_j h_kj (y_j - m_kj)^2 by full gradient steps."""

    curvatures: Array
    minima: Array
    rates: tuple[float, ...]
    """One a round."""
    num_steps: tuple[int, ...]
    """One a client."""
    cohorts: tuple[tuple[int, ...], ...]
    """One a round."""
    server_rate: float = 1.0

    @property
    def num_clients(self) -> int:
        return len(self.minima)


def oracle(problem: Quadratics) -> tuple[Array, Array, Array]:
    """Return x, c and the c_k as the paper writes them, in float64."""
    x, c, own = (np.zeros_like(problem.minima[0]), np.zeros_like(problem.minima[0]), np.zeros_like(problem.minima))
    for rate, cohort in zip(problem.rates, problem.cohorts, strict=True):
        dx, dc = [], []
        for k in cohort:
            y = x.copy()
            for _ in range(problem.num_steps[k]):
                y = y - rate * (problem.curvatures[k] * (y - problem.minima[k]) - own[k] + c)
            after = own[k] - c + (x - y) / (problem.num_steps[k] * rate)
            dx.append(y - x)
            dc.append(after - own[k])
            own[k] = after
        x = x + problem.server_rate * sum(dx) / len(cohort)
        c = c + len(cohort) / problem.num_clients * sum(dc) / len(cohort)
    return x, c, own


def slots(width: int) -> tuple[Slot, ...]:
    """Two slots that share the coordinates, and one that does not travel."""
    shapes = {"w": (1, width - 1), "b": (1,)}
    linear = [
        Slot(name=name, shape=shape, algebra=Algebra.LINEAR, group=name, role="head") for name, shape in shapes.items()
    ]
    return (*linear, Slot(name="own", shape=(2,), algebra=Algebra.LOCAL, group="own", role="head"))


def tensors(values: Any) -> Tensors:
    flat = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return Tensors({"w": flat[:-1].reshape(1, -1), "b": flat[-1:]})


def array(found: Tensors) -> Array:
    return np.concatenate([tensor.numpy().astype(np.float64).ravel() for tensor in found.values()])


def turn_of(strategy: Scaffold, state: State, memory: Tensors, *, width: int, num_clients: int, rate: float) -> Turn:
    return Turn(
        slots=slots(width),
        received=state.adapter,
        beside=strategy.broadcast(slots(width), state),
        memory=memory,
        round_number=1,
        num_clients=num_clients,
        learning_rate=rate,
    )


def trained(strategy: Scaffold, turn: Turn, problem: Quadratics, client: int) -> Tensors:
    """Return what plain SGD on the loss and the strategy's penalty comes to."""
    parameters = {name: nn.Parameter(tensor.clone()) for name, tensor in strategy.begin(turn).items()}
    curvature, minimum = tensors(problem.curvatures[client]), tensors(problem.minima[client])
    optimizer = torch.optim.SGD(parameters.values(), lr=turn.learning_rate)
    for _ in range(problem.num_steps[client]):
        optimizer.zero_grad()
        loss = sum((curvature[n] / 2 * (value - minimum[n]) ** 2).sum() for n, value in parameters.items())
        penalty = strategy.penalty(parameters, turn)
        assert penalty is not None
        (loss + penalty).backward()
        optimizer.step()
    return Tensors((name, value.detach().clone()) for name, value in parameters.items())


def run(problem: Quadratics) -> tuple[State, dict[int, Tensors]]:
    strategy, width = make(Options(server_rate=problem.server_rate)), problem.minima.shape[1]
    state, memories = strategy.init(slots(width), tensors(np.zeros(width))), {}
    for rate, cohort in zip(problem.rates, problem.cohorts, strict=True):
        total = strategy.start()
        for k in cohort:
            memory = memories.get(k, Tensors())
            turn = turn_of(strategy, state, memory, width=width, num_clients=problem.num_clients, rate=rate)
            parting = strategy.finish(turn, trained(strategy, turn, problem, k), num_steps=problem.num_steps[k])
            memories[k] = parting.memory
            delta = parting.adapter - state.adapter
            total = strategy.accumulate(
                total, ClientUpdate(client=k, delta=delta, num_examples=k + 1, beside=parting.beside)
            )
        state = strategy.apply(slots(width), state, total)
    return state, memories


def close(found: Array, wanted: Array, scale: float) -> None:
    """Compare by norms: 1e-6 of the largest vector at play, for float32 tensors."""
    assert np.linalg.norm(found - wanted) <= 1e-6 * scale


@st.composite
def problems(draw: st.DrawFn) -> Quadratics:
    num_clients, width = draw(st.integers(1, 8)), draw(st.integers(2, 8))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_rounds = draw(st.integers(1, 5))
    cohorts = tuple(
        tuple(sorted(draw(st.sets(st.integers(0, num_clients - 1), min_size=1)))) for _ in range(num_rounds)
    )
    single = lambda values: values.astype(np.float32).astype(np.float64)  # noqa: E731
    return Quadratics(
        curvatures=single(random.uniform(0.2, 1.0, (num_clients, width))),
        minima=single(random.normal(size=(num_clients, width))),
        rates=tuple(float(random.uniform(0.2, 0.6)) for _ in range(num_rounds)),
        num_steps=tuple(int(random.integers(1, 6)) for _ in range(num_clients)),
        cohorts=cohorts,
        server_rate=draw(st.sampled_from([0.5, 1.0])),
    )


@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_rounds_are_those_of_the_paper(problem: Quadratics) -> None:
    """Partial cohorts, unequal steps, a rate that changes: x, c and every c_k."""
    x, c, own = oracle(problem)

    state, memories = run(problem)

    scale = float(np.linalg.norm(problem.minima)) + 1.0
    close(array(state.adapter), x, scale)
    close(array(state.memory), c, scale)
    for k in range(problem.num_clients):
        close(array(memories[k]) if k in memories else np.zeros_like(x), own[k], scale)
    close(array(state.memory), own.mean(axis=0), scale)


def test_two_rounds_by_hand() -> None:
    """One step at rate 1/2 of h = 1 from x = 0, both coordinates alike; N = 2.

    Round 1, both clients, minima 4 and 0: y = 2 and 0, x = 1; c_k' = (0 - y) / (1/2) = -4 and 0, c = -2.
    Round 2, client 0 alone: gradient 1 - 4 = -3, less c_0 and plus c: -3 + 4 - 2 = -1; y = 1.5 = x;
    c_0' = -4 + 2 + (1 - 1.5) / (1/2) = -3; c = -2 + (1 / 2) (-3 + 4) = -1.5.
    """
    problem = Quadratics(
        curvatures=np.ones((2, 2)),
        minima=np.array([[4.0, 4.0], [0.0, 0.0]]),
        rates=(0.5, 0.5),
        num_steps=(1, 1),
        cohorts=((0, 1), (0,)),
    )

    state, memories = run(problem)

    assert array(state.adapter).tolist() == [1.5, 1.5]
    assert array(state.memory).tolist() == [-1.5, -1.5]
    assert [array(memories[k]).tolist() for k in range(2)] == [[-3.0, -3.0], [0.0, 0.0]]


def test_it_goes_to_the_common_minimum_where_fedavg_stays_away_from_it() -> None:
    """Unequal curvatures and many local steps pull the mean of the clients' steps off the minimum of the sum."""
    curvatures, minima = np.array([[1.0, 0.2], [0.2, 1.0]]), np.array([[1.0, 1.0], [-1.0, -1.0]])
    wanted = (curvatures * minima).sum(axis=0) / curvatures.sum(axis=0)
    problem = Quadratics(
        curvatures=curvatures, minima=minima, rates=(0.5,) * 60, num_steps=(5, 5), cohorts=((0, 1),) * 60
    )

    state, _ = run(problem)

    assert np.allclose(array(state.adapter), wanted, atol=1e-5)
    drifted = np.zeros(2)
    for _ in range(200):
        drifted = np.mean(minima + (1 - 0.5 * curvatures) ** 5 * (drifted - minima), axis=0)
    assert np.abs(drifted - wanted).max() > 0.1


def test_the_correction_is_the_gradient_of_the_penalty() -> None:
    strategy = make(Options())
    state = State(adapter=tensors([0.0, 0.0, 0.0]), memory=named([1.0, 2.0, 3.0]))
    turn = turn_of(strategy, state, named([0.5, 5.0, 3.0]), width=3, num_clients=2, rate=0.1)
    parameters = {name: nn.Parameter(torch.ones_like(tensor)) for name, tensor in state.adapter.items()}

    penalty = strategy.penalty(parameters, turn)

    assert penalty is not None
    assert (penalty.shape, penalty.item()) == ((), -2.5)
    gradients = torch.autograd.grad(penalty, list(parameters.values()))
    assert [gradient.tolist() for gradient in gradients] == [[[0.5, -3.0]], [0.0]]


def named(values: list[float]) -> Tensors:
    return Tensors((f"control/{name}", tensor) for name, tensor in tensors(values).items())


def test_memory_of_another_adapter_is_refused_by_name() -> None:
    strategy = make(Options())
    state = strategy.init(slots(3), tensors([0.0, 0.0, 0.0]))
    turn = turn_of(strategy, state, named([1.0, 2.0]), width=3, num_clients=2, rate=0.1)

    with pytest.raises(TensorMismatchError, match=r"memory: .*control/w \[1, 1\].*\[1, 2\]"):
        strategy.finish(turn, state.adapter, num_steps=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "adamw"}, r"train\.optimizer = 'adamw'; set it to 'sgd'"),
        ({"momentum": 0.9}, r"train\.momentum = 0\.9; leave it out"),
        ({"weight_decay": 0.1}, r"train\.weight_decay = 0\.1; leave it out"),
        ({"max_grad_norm": 1.0}, r"train\.max_grad_norm = 1\.0; leave it out"),
    ],
)
def test_all_but_plain_sgd_is_refused(change: dict[str, Any], words: str) -> None:
    strategy = make(Options())
    strategy.check_settings(train=PLAIN, evaluate=Evaluate())

    with pytest.raises(UnsupportedError, match=words):
        strategy.check_settings(train=PLAIN.model_copy(update=change), evaluate=Evaluate())
