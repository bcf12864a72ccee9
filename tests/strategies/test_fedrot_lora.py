"""fedrot_lora: factors turned towards the global ones, the product as it was."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpeft.adapters.base import Algebra, Slot
from fedpeft.strategies.base import ClientUpdate, State, Turn
from fedpeft.strategies.fedrot_lora import Options, make
from fedpeft.tensors import Tensors

Array = np.ndarray[Any, np.dtype[np.float64]]
seeds = st.integers(0, 2**32 - 1)


def slots_of(a: Array, b: Array) -> tuple[Slot, ...]:
    shapes = {"A": a.shape, "B": b.shape}
    factors = [
        Slot(name=f"q.{role}", shape=shape, algebra=Algebra.BILINEAR, group="q", role=role, scale=3.0)
        for role, shape in shapes.items()
    ]
    return (*factors, Slot(name="head", shape=(2,), algebra=Algebra.LINEAR, group="head", role="head"))


def tensors(a: Any, b: Any, head: Any = (0.0, 0.0)) -> Tensors:
    values = {"q.A": a, "q.B": b, "head": head}
    return Tensors((name, torch.as_tensor(np.asarray(value), dtype=torch.float32)) for name, value in values.items())


def factors(adapter: Tensors) -> tuple[Array, Array]:
    a, b = (adapter[f"q.{role}"].numpy().astype(np.float64) for role in "AB")
    return a, b


def product(adapter: Tensors) -> Array:
    a, b = factors(adapter)
    return b @ a


def turned(received: Tensors, trained: Tensors, *, round_number: int, **options: Any) -> Tensors:
    turn = Turn(
        slots=slots_of(*factors(trained)),
        received=received,
        round_number=round_number,
        num_clients=2,
        learning_rate=0.1,
    )
    return make(Options(**options)).finish(turn, trained, num_steps=1).adapter


def orthogonal(random: np.random.Generator, rank: int) -> Array:
    q, r = np.linalg.qr(random.normal(size=(rank, rank)))
    return np.asarray(q * np.sign(np.diag(r)))


def polar(matrix: Array) -> Array:
    """Return the orthogonal factor of M = Q P by Newton's iteration, not by an SVD."""
    q = matrix
    for _ in range(100):
        q = (q + np.linalg.inv(q).T) / 2
    return q


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int, np.random.Generator]:
    rank = draw(st.integers(1, 8))
    return rank, draw(st.integers(rank, 12)), draw(st.integers(rank, 12)), np.random.default_rng(draw(seeds))


def drawn(random: np.random.Generator, rank: int, d_in: int, d_out: int) -> Tensors:
    return tensors(random.normal(size=(rank, d_in)), random.normal(size=(d_out, rank)), random.normal(size=2))


@settings(max_examples=25, deadline=None)
@given(size=sizes(), round_number=st.integers(1, 2), strength=st.sampled_from([0.2, 0.5, 0.8, 1.0]))
def test_the_product_the_norms_and_all_else_stay(size: Any, round_number: int, strength: float) -> None:
    rank, d_in, d_out, random = size
    received, trained = drawn(random, rank, d_in, d_out), drawn(random, rank, d_in, d_out)

    found = turned(received, trained, round_number=round_number, strength=strength)

    assert found.manifest() == trained.manifest()
    before = product(trained)
    assert np.linalg.norm(product(found) - before) <= 1e-6 * np.linalg.norm(before)
    for old, new in zip(factors(trained), factors(found), strict=True):
        assert np.linalg.norm(new) == pytest.approx(np.linalg.norm(old), rel=1e-6)
    assert torch.equal(found["head"], trained["head"])


@settings(max_examples=25, deadline=None)
@given(seed=seeds, rank=st.integers(1, 4), round_number=st.integers(1, 2), strength=st.sampled_from([0.2, 0.5, 0.8]))
def test_it_is_the_softened_fit(seed: int, rank: int, round_number: int, strength: float) -> None:
    """Against the polar factor found by Newton's iteration, near the global factors where it converges fast."""
    random = np.random.default_rng(seed)
    received = drawn(random, rank, 6, 5)
    a0, b0 = factors(received)
    trained = tensors(a0 + 0.1 * random.normal(size=a0.shape), b0 + 0.1 * random.normal(size=b0.shape))
    a, b = factors(trained)
    cross = a @ a0.T if round_number == 1 else b.T @ b0
    soft = (1 - strength) * np.eye(rank) + strength * cross * np.sqrt(rank / np.sum(cross**2))
    q = polar(soft)

    found_a, found_b = factors(turned(received, trained, round_number=round_number, strength=strength))

    assert np.linalg.norm(found_a - q.T @ a) <= 1e-6 * np.linalg.norm(a)
    assert np.linalg.norm(found_b - b @ q) <= 1e-6 * np.linalg.norm(b)


@settings(max_examples=25, deadline=None)
@given(size=sizes(), round_number=st.integers(1, 2))
def test_the_whole_fit_is_nearest_to_the_global_factor(size: Any, round_number: int) -> None:
    """No drawn rotation comes nearer, and odd rounds look at A, even ones at B."""
    rank, d_in, d_out, random = size
    received, trained = drawn(random, rank, d_in, d_out), drawn(random, rank, d_in, d_out)
    found = turned(received, trained, round_number=round_number, strength=1.0)
    which = (round_number - 1) % 2

    best = np.linalg.norm(factors(found)[which] - factors(received)[which])

    a, b = factors(trained)
    for q in (np.eye(rank), *(orthogonal(random, rank) for _ in range(20))):
        other = (q.T @ a, b @ q)[which]
        assert best <= np.linalg.norm(other - factors(received)[which]) * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(size=sizes(), num_clients=st.integers(1, 8), round_number=st.integers(1, 2))
def test_clients_that_differ_by_rotations_alone_are_averaged_exactly(
    size: Any, num_clients: int, round_number: int
) -> None:
    rank, d_in, d_out, random = size
    received = drawn(random, rank, d_in, d_out)
    a0, b0 = factors(received)
    a, b = a0 + 0.1 * random.normal(size=a0.shape), b0 + 0.1 * random.normal(size=b0.shape)
    rotations = [orthogonal(random, rank) for _ in range(num_clients)]
    clients = [tensors(q.T @ a, b @ q) for q in rotations]

    before = error_of(received, clients)
    after = error_of(
        received, [turned(received, client, round_number=round_number, strength=1.0) for client in clients]
    )

    assert after <= before + 1e-6
    assert after <= 1e-5


def error_of(received: Tensors, clients: list[Tensors]) -> float:
    """Return ||product of the means - mean of the products|| over the norm of the latter, through the server's half."""
    strategy, slots = make(Options()), slots_of(*factors(received))
    total = strategy.start()
    for k, client in enumerate(clients):
        total = strategy.accumulate(total, ClientUpdate(client=k, delta=client - received, num_examples=k + 1))
    found = product(strategy.apply(slots, State(adapter=received), total).adapter)
    weights = np.arange(1, len(clients) + 1) / sum(range(1, len(clients) + 1))
    wanted = sum(weight * product(client) for weight, client in zip(weights, clients, strict=True))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_by_hand() -> None:
    """A_k is A turned by a quarter: the whole fit turns it back, and B_k with it."""
    received = tensors([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.zeros((2, 2)))
    trained = tensors([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]])

    found = turned(received, trained, round_number=1, strength=1.0)

    torch.testing.assert_close(found["q.A"], received["q.A"])
    torch.testing.assert_close(found["q.B"], torch.tensor([[-2.0, 1.0], [-4.0, 3.0]]))


def test_half_strength_turns_a_quarter_by_half() -> None:
    """The sum of the identity and a turn by 90 degrees is a turn by 45, longer by sqrt 2."""
    received = tensors([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.zeros((2, 2)))
    trained = tensors([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], np.eye(2))

    found = turned(received, trained, round_number=1, strength=0.5)

    half = float(np.sqrt(0.5))
    torch.testing.assert_close(found["q.A"], torch.tensor([[half, half, 0.0], [-half, half, 0.0]]))


def test_where_the_global_factor_is_zero_nothing_is_turned() -> None:
    random = np.random.default_rng(1)
    trained = drawn(random, 3, 5, 4)
    received = tensors(factors(trained)[0], np.zeros((4, 3)))

    found = turned(received, trained, round_number=2, strength=1.0)

    assert found == trained


@pytest.mark.parametrize("strength", [0.0, 1.1])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ValidationError):
        Options(strength=strength)
