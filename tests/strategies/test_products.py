"""lora_fair, flexlora and florist against dense float64 NumPy, and lora_fair against numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from fedpeft import plugins
from fedpeft.adapters.base import Algebra, Pair, Slot
from fedpeft.errors import RunError
from fedpeft.strategies.base import ClientUpdate, State
from fedpeft.strategies.products import Product, decompose, stacked
from fedpeft.strategies.repair import cosine, ridge
from fedpeft.tensors import Tensors

Array = np.ndarray[Any, np.dtype[np.float64]]
Clients = list[tuple[Array, Array]]
"""(B_k, A_k) of each client."""

BY_HAND: Clients = [
    (np.array([[1.0, 0.0], [2.0, 1.0]]), np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])),
    (np.array([[0.0, 1.0], [1.0, -1.0]]), np.array([[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]])),
]
WEIGHTS = np.array([0.25, 0.75])
few = settings(max_examples=25, deadline=None)


def pair_of(rank: int, d_in: int, d_out: int) -> tuple[Slot, Slot]:
    a, b = (
        Slot(name=f"q.{role}", shape=shape, algebra=Algebra.BILINEAR, group="q", role=role)
        for role, shape in (("A", (rank, d_in)), ("B", (d_out, rank)))
    )
    return a, b


def mean_product(clients: Clients, weights: Array) -> Array:
    total: Array = sum(weight * (b @ a) for weight, (b, a) in zip(weights, clients, strict=True))  # type: ignore[assignment]
    return total


def plain(clients: Clients, weights: Array) -> tuple[Array, Array]:
    """Return Bbar and Abar."""
    b, a = (sum(weight * client[side] for weight, client in zip(weights, clients, strict=True)) for side in (0, 1))
    return np.asarray(b), np.asarray(a)


def angle(one: Array, two: Array) -> float:
    return float((one * two).sum() / (np.linalg.norm(one) * np.linalg.norm(two)))


def relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def tensor(array: Array) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float64)


def cases(*, max_dimension: int = 9) -> Any:
    """Draw a seed, a number of clients, a rank and a layer's shape."""
    return st.tuples(
        st.integers(0, 2**32 - 1),
        st.integers(1, 8),
        st.integers(1, 8),
        st.integers(1, max_dimension),
        st.integers(1, max_dimension),
    )


class Round:
    """One round of clients that share a start, as float32 holds it, and the same in float64."""

    def __init__(self, case: tuple[int, int, int, int, int], *, step: float = 0.3) -> None:
        seed, num_clients, rank, d_in, d_out = case
        random = np.random.default_rng(seed)
        self.slots = (*pair_of(rank, d_in, d_out), head())
        shapes = {slot.name: slot.shape for slot in self.slots}
        self.start = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        self.deltas = [
            {name: (step * random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
            for _ in range(num_clients)
        ]
        self.counts = [int(count) for count in random.integers(1, 20, size=num_clients)]
        self.weights = np.array(self.counts) / sum(self.counts)
        held = [{name: self.start[name].astype(np.float64) + delta[name] for name in shapes} for delta in self.deltas]
        self.clients = [(client["q.B"], client["q.A"]) for client in held]
        self.wanted = mean_product(self.clients, self.weights)
        self.heads = np.asarray(sum(w * client["head"] for w, client in zip(self.weights, held, strict=True)))

    def after(self, name: str, *, order: int = 1, **options: Any) -> dict[str, Array]:
        """Return the adapter after the round."""
        module = plugins.load("strategy", name)
        strategy, total = module.make(module.Options(**options)), None
        strategy.check(self.slots)
        total = strategy.start()
        for client in list(range(len(self.deltas)))[::order]:
            delta = Tensors((name, torch.tensor(value)) for name, value in self.deltas[client].items())
            update = ClientUpdate(client=client, delta=delta, num_examples=self.counts[client])
            total = strategy.accumulate(total, update)
        state = State(adapter=Tensors((name, torch.tensor(value)) for name, value in self.start.items()))
        adapter = strategy.apply(self.slots, strategy.init(self.slots, state.adapter), total).adapter
        return {name: value.numpy().astype(np.float64) for name, value in adapter.items()}


def head() -> Slot:
    return Slot(name="head", shape=(3,), algebra=Algebra.LINEAR, group="head", role="head")


# lora_fair by hand


def ridge_by_hand(penalty: float) -> Array:
    b, a = plain(BY_HAND, WEIGHTS)
    missing = mean_product(BY_HAND, WEIGHTS) - b @ a
    return ridge(tensor(missing @ a.T), tensor(a @ a.T), penalty=penalty).numpy()


def cosine_by_hand(**options: Any) -> Array:
    b, a = plain(BY_HAND, WEIGHTS)
    wanted = mean_product(BY_HAND, WEIGHTS)
    norm = float(np.linalg.norm(wanted))
    return cosine(tensor(b), tensor(wanted @ a.T), tensor(a @ a.T), norm=norm, **options).numpy()


@pytest.mark.parametrize(
    ("penalty", "correction"),
    [
        (0.0, [[-0.25, 0.25], [0.875, -0.875]]),
        (0.01, [[-0.2467105263, 0.2467105263], [0.8634868421, -0.8634868421]]),
        (1.0, [[-0.1071428571, 0.1071428571], [0.375, -0.375]]),
    ],
)
def test_ridge_by_hand(penalty: float, correction: list[list[float]]) -> None:
    np.testing.assert_allclose(ridge_by_hand(penalty), correction, atol=1e-10)


def test_what_ridge_leaves_by_hand() -> None:
    """||R|| / ||DW*|| is 0.514 before, and 0.247 after: what lies outside the rows of Abar stays."""
    (b, a), wanted = plain(BY_HAND, WEIGHTS), mean_product(BY_HAND, WEIGHTS)

    assert relative(b @ a, wanted) == pytest.approx(0.5138390918, abs=1e-10)
    assert relative((b + ridge_by_hand(0.0)) @ a, wanted) == pytest.approx(0.2474358297, abs=1e-10)


def test_one_small_step_of_cosine_is_the_gradient_by_hand() -> None:
    gradient = -cosine_by_hand(penalty=0.01, num_steps=1, step_size=1e-6) / 1e-6

    expected = [[0.1077543599, 0.0666267416], [-0.0065804189, 0.137366245]]
    np.testing.assert_allclose(gradient, expected, atol=1e-9)


def test_cosine_ends_at_its_limit_by_hand() -> None:
    """Without a penalty the best direction is reached; with almost none, the best point of that direction."""
    (b, a), wanted = plain(BY_HAND, WEIGHTS), mean_product(BY_HAND, WEIGHTS)

    free = b + cosine_by_hand(penalty=0.0, num_steps=3000, step_size=1.0)
    held = b + cosine_by_hand(penalty=5e-4, num_steps=10_000, step_size=1.0)

    assert angle(wanted, b @ a) == pytest.approx(0.9276162935, abs=1e-10)
    assert angle(wanted, free @ a) == pytest.approx(0.9689042833, abs=1e-9)
    np.testing.assert_allclose(held, 0.5527426160 * np.array([[0.0, 1.0], [2.125, -1.375]]), atol=2e-3)


def test_a_step_far_too_long_is_halved_and_never_makes_it_worse() -> None:
    (b, a), wanted = plain(BY_HAND, WEIGHTS), mean_product(BY_HAND, WEIGHTS)

    for num_steps in (1, 10, 100):
        after = b + cosine_by_hand(penalty=0.01, num_steps=num_steps, step_size=1e3)
        assert angle(wanted, after @ a) >= angle(wanted, b @ a)


# lora_fair against dense NumPy


def dense_ridge(case: Round, strength: float) -> Array:
    b, a = plain(case.clients, case.weights)
    gram = a @ a.T
    penalty = strength * np.trace(gram) / len(gram)
    found: Array = b + (case.wanted - b @ a) @ a.T @ np.linalg.inv(gram + penalty * np.eye(len(gram)))
    return found


@few
@given(case=cases(), strength=st.sampled_from([0.01, 0.1, 1.0]))
def test_ridge_is_the_dense_solution_and_never_farther_than_plain_averaging(case: Any, strength: float) -> None:
    drawn = Round(case)

    found = drawn.after("lora_fair", regularization=strength)

    b, a = plain(drawn.clients, drawn.weights)
    np.testing.assert_allclose(found["q.A"], a, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["head"], drawn.heads, rtol=1e-6, atol=1e-6)
    assert relative(found["q.B"], dense_ridge(drawn, strength)) < 1e-6
    rounding = 1e-6 * np.linalg.norm(drawn.wanted)
    before, after = (np.linalg.norm(drawn.wanted - left) for left in (b @ a, found["q.B"] @ found["q.A"]))
    assert after <= before + rounding


@few
@given(case=cases())
def test_ridge_without_a_penalty_leaves_what_no_b_can_reach(case: Any) -> None:
    """Singular systems too: of rank above the layer's width, the error is that of the best B all the same."""
    drawn = Round(case)
    _, a = plain(drawn.clients, drawn.weights)
    best = drawn.wanted @ np.linalg.pinv(a, rcond=1e-9) @ a

    found = drawn.after("lora_fair", regularization=0.0)

    assert np.linalg.norm(found["q.B"] @ found["q.A"] - best) < 1e-5 * np.linalg.norm(drawn.wanted)


def descended(case: Round, *, penalty: float, num_steps: int, step_size: float) -> Array:
    """Return the corrected B by dense gradient descent that halves its step rather than rise."""
    b, a = plain(case.clients, case.weights)

    def objective(change: Array) -> float:
        return 1.0 - angle(case.wanted, (b + change) @ a) + penalty * float((change**2).sum())

    def gradient(change: Array) -> Array:
        m = (b + change) @ a
        size, norm = np.linalg.norm(m), np.linalg.norm(case.wanted)
        found: Array = -(case.wanted / (norm * size) - (case.wanted * m).sum() * m / (norm * size**3)) @ a.T
        return found + 2 * penalty * change

    change = np.zeros_like(b)
    for _ in range(num_steps):
        candidate = change - step_size * gradient(change)
        if objective(candidate) <= objective(change):
            change = candidate
        else:
            step_size /= 2
    return b + change


@few
@given(case=cases(max_dimension=6), penalty=st.sampled_from([0.0, 0.01, 1.0]))
@example(case=(11889, 1, 1, 1, 1), penalty=0.01)
def test_cosine_is_dense_descent_and_never_turns_away(case: Any, penalty: float) -> None:
    drawn = Round(case)
    (b, a), steps = plain(drawn.clients, drawn.weights), {"num_steps": 15, "step_size": 0.02}

    found = drawn.after("lora_fair", variant="cosine", regularization=penalty, **steps)

    assert relative(found["q.B"], descended(drawn, penalty=penalty, **steps)) < 1e-6  # type: ignore[arg-type]
    assert angle(drawn.wanted, found["q.B"] @ found["q.A"]) >= angle(drawn.wanted, b @ a) - 1e-6


@pytest.mark.parametrize("variant", ["ridge", "cosine"])
def test_one_client_gets_its_adapter_back(variant: str) -> None:
    drawn = Round((1, 1, 3, 5, 4))

    found = drawn.after("lora_fair", variant=variant)

    np.testing.assert_allclose(found["q.B"], drawn.clients[0][0], rtol=1e-6)


@pytest.mark.parametrize("variant", ["ridge", "cosine"])
def test_where_there_is_no_product_yet_the_plain_means_stand(variant: str) -> None:
    """As in a first round in which B never moved."""
    drawn = Round((2, 4, 3, 5, 4))
    drawn.start["q.B"] *= 0
    for delta in drawn.deltas:
        delta["q.B"] *= 0

    found = drawn.after("lora_fair", variant=variant)

    assert not found["q.B"].any()
    mean = np.average([delta["q.A"] for delta in drawn.deltas], axis=0, weights=drawn.counts)
    np.testing.assert_allclose(found["q.A"], drawn.start["q.A"] + mean, rtol=1e-6, atol=1e-6)


def test_clients_whose_products_cancel_have_no_direction_and_are_averaged() -> None:
    """B and -B: DW* is zero, and so is Bbar; the cosine of either is not a number."""
    drawn = Round((3, 2, 2, 4, 3))
    drawn.counts, drawn.start["q.B"] = [1, 1], drawn.start["q.B"] * 0
    drawn.deltas[1] = {**drawn.deltas[0], "q.B": -drawn.deltas[0]["q.B"]}

    found = drawn.after("lora_fair", variant="cosine")

    assert not found["q.B"].any()


@pytest.mark.parametrize("given", [{"num_steps": 5}, {"step_size": 0.1}, {"variant": "ridge", "num_steps": 5}])
def test_options_of_descent_are_refused_where_nothing_descends(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"variant 'cosine'; leave them out for 'ridge'"):
        plugins.load("strategy", "lora_fair").Options(**given)


def test_the_defaults_of_descent_are_written_out_and_read_again() -> None:
    options = plugins.load("strategy", "lora_fair").Options
    written = options(variant="cosine").model_dump()

    assert (written["num_steps"], written["step_size"]) == (1000, 0.01)
    assert options(**written) == options(variant="cosine")
    assert options(**options().model_dump()) == options()


# flexlora and florist against dense NumPy


def truncated(wanted: Array, rank: int) -> Array:
    u, s, vt = np.linalg.svd(wanted, full_matrices=False)
    found: Array = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return found


@few
@given(case=cases(max_dimension=12), split=st.sampled_from(["balanced", "one_sided"]))
def test_flexlora_is_the_nearest_product_of_the_rank(case: Any, split: str) -> None:
    drawn = Round(case)

    found = drawn.after("flexlora", split=split)

    best = truncated(drawn.wanted, case[2])
    np.testing.assert_allclose(found["head"], drawn.heads, rtol=1e-6, atol=1e-6)
    assert np.linalg.norm(found["q.B"] @ found["q.A"] - best) <= 1e-6 * np.linalg.norm(drawn.wanted)


@few
@given(case=cases(), split=st.sampled_from(["balanced", "one_sided"]))
def test_flexlora_is_exact_where_the_rank_suffices(case: Any, split: str) -> None:
    seed, num_clients, rank, d_in, d_out = case
    drawn = Round((seed, num_clients, rank, d_in, min(rank, d_out)))

    found = drawn.after("flexlora", split=split)

    assert np.linalg.norm(found["q.B"] @ found["q.A"] - drawn.wanted) <= 1e-6 * np.linalg.norm(drawn.wanted)


def test_the_two_splits_differ_only_in_where_the_size_is() -> None:
    drawn = Round((5, 4, 2, 6, 7))
    s = np.linalg.svd(drawn.wanted, compute_uv=False)[:2]

    balanced, one_sided = (drawn.after("flexlora", split=split) for split in ("balanced", "one_sided"))

    for found, on_b, on_a in ((balanced, s, s), (one_sided, s**2, np.ones(2))):
        np.testing.assert_allclose(found["q.B"].T @ found["q.B"], np.diag(on_b), atol=1e-6 * s[0] ** 2)
        np.testing.assert_allclose(found["q.A"] @ found["q.A"].T, np.diag(on_a), atol=1e-6 * s[0] ** 2)
        assert (found["q.B"].max(axis=0) >= -found["q.B"].min(axis=0)).all()


@few
@given(case=cases(max_dimension=12), tau=st.floats(0.05, 1.0))
def test_florist_keeps_the_fewest_values_that_hold_the_energy(case: Any, tau: float) -> None:
    drawn, rank = Round(case), case[2]
    s = np.linalg.svd(drawn.wanted, compute_uv=False)
    energy = np.cumsum(s**2) / np.sum(s**2)
    fewest = next(count for count in range(1, len(s) + 1) if energy[count - 1] >= tau - 1e-12)
    kept = min(fewest, rank)

    found = drawn.after("florist", tau=tau)

    best = truncated(drawn.wanted, kept)
    assert np.linalg.norm(found["q.B"] @ found["q.A"] - best) <= 1e-6 * np.linalg.norm(drawn.wanted)
    assert not found["q.B"][:, kept:].any()
    if fewest <= rank:
        assert np.linalg.norm(best - drawn.wanted) ** 2 <= (1 - tau + 1e-9) * np.linalg.norm(drawn.wanted) ** 2


def test_florist_by_hand() -> None:
    """Singular values 4, 2, 1 of energy 16, 4, 1: at 0.75 one is kept, at 0.95 two, at 1 three; the fourth is spare."""
    for tau, kept in ((0.75, 1), (0.95, 2), (1.0, 3)):
        found = diagonal(4.0, 2.0, 1.0).after("florist", tau=tau, split="one_sided")
        expected = np.zeros((4, 4))
        expected[range(kept), range(kept)] = [4.0, 2.0, 1.0][:kept]
        np.testing.assert_allclose(found["q.B"], expected, atol=1e-6)
        np.testing.assert_allclose(found["q.A"][:kept, :4], np.eye(4)[:kept], atol=1e-6)


def diagonal(*values: float) -> Round:
    drawn = Round((0, 1, 4, 400, 4))
    drawn.start = {name: value * 0 for name, value in drawn.start.items()}
    drawn.deltas[0]["q.A"] = np.eye(4, 400, dtype=np.float32)
    drawn.deltas[0]["q.B"] = np.diag([*values, 0.0]).astype(np.float32)
    return drawn


@pytest.mark.parametrize("name", ["flexlora", "florist"])
def test_spare_directions_can_be_trained_and_are_the_same_each_time(name: str) -> None:
    """A row of A over a zero column of B is Gaussian, about as long as the orthonormal rows beside it."""
    one, two = (diagonal(4.0, 4.0, 0.0).after(name) for _ in range(2))

    lengths = np.linalg.norm(one["q.A"][2:], axis=1)
    assert ((lengths > 0.7) & (lengths < 1.3)).all()
    assert not one["q.B"][:, 2:].any()
    assert all((one[key] == two[key]).all() for key in one)


@pytest.mark.parametrize("name", ["flexlora", "florist"])
def test_a_pair_that_nobody_moved_stays_to_the_bit(name: str) -> None:
    drawn = Round((4, 3, 2, 5, 4))
    for delta in drawn.deltas:
        delta["q.A"], delta["q.B"] = delta["q.A"] * 0, delta["q.B"] * 0

    found = drawn.after(name)

    assert all((found[key] == drawn.start[key]).all() for key in ("q.A", "q.B"))
    np.testing.assert_allclose(found["head"], drawn.heads, rtol=1e-6, atol=1e-6)


# what they share


@few
@given(ranks=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_clients_may_have_ranks_of_their_own(ranks: list[int], seed: int) -> None:
    """The stack and its decomposition ask nothing of a client's rank; weights carry a client's own scale."""
    random = np.random.default_rng(seed)
    clients = [(random.normal(size=(5, rank)), random.normal(size=(rank, 7))) for rank in ranks]
    weights = random.uniform(0.1, 2.0, size=len(ranks))
    a, b = pair_of(4, 7, 5)
    updates = [
        ClientUpdate(client=k, delta=Tensors({"q.A": tensor(mine[1]), "q.B": tensor(mine[0])}), num_examples=1)
        for k, mine in enumerate(clients)
    ]

    product = stacked(Pair(a=a, b=b), updates, list(weights))
    svd = decompose(product)

    wanted = mean_product(clients, weights)
    assert product.b.shape == (5, sum(ranks))
    assert product.norm() == pytest.approx(np.linalg.norm(wanted))
    np.testing.assert_allclose((svd.u * svd.s @ svd.vt).numpy(), wanted, atol=1e-12 * np.linalg.norm(wanted) * 100)
    np.testing.assert_allclose(svd.s.numpy(), np.linalg.svd(wanted, compute_uv=False)[: len(svd.s)], atol=1e-10)


def test_the_norm_of_a_product_that_cancels_is_no_less_than_zero() -> None:
    ones = torch.ones(3, 1, dtype=torch.float64)
    assert Product(b=torch.cat([ones, -ones], dim=1), a=torch.cat([ones.T, ones.T])).norm() == 0.0


CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("lora_fair", {}),
    ("lora_fair", {"variant": "cosine", "num_steps": 20}),
    ("flexlora", {"split": "one_sided"}),
    ("florist", {"tau": 0.8}),
]


@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS)
def test_the_order_of_arrival_does_not_matter_to_a_bit(name: str, options: dict[str, Any]) -> None:
    drawn = Round((6, 5, 3, 8, 6))

    one, two = (drawn.after(name, order=order, **options) for order in (1, -1))

    assert all((one[key] == two[key]).all() for key in one)


@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS)
def test_uniform_weighting_is_that_of_equal_numbers(name: str, options: dict[str, Any]) -> None:
    drawn = Round((7, 4, 2, 6, 5))
    uniform = drawn.after(name, weighting="uniform", **options)
    drawn.counts = [1] * 4

    equal = drawn.after(name, **options)

    assert all((uniform[key] == equal[key]).all() for key in equal)


@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS)
def test_updates_without_weight_are_refused(name: str, options: dict[str, Any]) -> None:
    drawn = Round((8, 2, 2, 4, 4))
    drawn.counts = [0, 0]

    with pytest.raises(RunError, match="no mean of 2 updates"):
        drawn.after(name, **options)
