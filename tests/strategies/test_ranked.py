"""Strategies that stack, over clients of unequal ranks: against dense float64 NumPy, one matrix a client."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft import config, plugins
from fedpeft.adapters.base import Algebra, Slot
from fedpeft.errors import ConfigError, TensorMismatchError
from fedpeft.seeds import generator
from fedpeft.strategies.base import ClientUpdate, State, Strategy
from fedpeft.tensors import Tensors
from tests.conftest import TINY_VIT, merged

Array = np.ndarray[Any, np.dtype[np.float64]]
MERGING, REFACTORING = ["fedex_lora", "flora"], ["flexlora", "florist"]
every = pytest.mark.parametrize("name", [*MERGING, *REFACTORING])
few = settings(max_examples=25, deadline=None)
SCALE = 2.0
sides = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 8))
"""d_out, d_in and the server's rank."""


def slots_of(d_out: int, d_in: int, rank: int) -> tuple[Slot, ...]:
    """Return one pair of scale 2 and a head."""
    shapes = {"A": (rank, d_in), "B": (d_out, rank)}
    factors = [
        Slot(name=f"q.{role}", shape=shape, algebra=Algebra.BILINEAR, group="q", role=role, scale=SCALE)
        for role, shape in shapes.items()
    ]
    return (*factors, Slot(name="head", shape=(3,), algebra=Algebra.LINEAR, group="head", role="head"))


def draw(slots: tuple[Slot, ...], *purpose: int | str) -> Tensors:
    return Tensors((slot.name, torch.randn(slot.shape, generator=generator(7, slot.name, *purpose))) for slot in slots)


def strategy_of(name: str, **options: Any) -> Strategy[Any]:
    module = plugins.load("strategy", name)
    exact = {"tau": 1.0} if name == "florist" else {}
    made: Strategy[Any] = module.make(module.Options(**{**exact, **options}))
    return made


def cut(tensors: Tensors, rank: int) -> Tensors:
    """Return the first ranks, cut by hand."""
    return Tensors({"q.A": tensors["q.A"][:rank], "q.B": tensors["q.B"][:, :rank], "head": tensors["head"]})


def product(tensors: Tensors) -> Array:
    """Return s B A, dense."""
    found: Array = SCALE * tensors["q.B"].numpy().astype(np.float64) @ tensors["q.A"].numpy().astype(np.float64)
    return found


def truncated(matrix: Array, rank: int) -> Array:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    found: Array = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return found


class Round:
    """What clients of some ranks train in one round, from the global adapter as it is."""

    def __init__(self, strategy: Strategy[Any], slots: tuple[Slot, ...], state: State, ranks: list[int], seed: int):
        self.strategy, self.slots, self.state, self.ranks = strategy, slots, state, ranks
        self.counts = [1 + (3 * client + seed) % 7 for client in range(len(ranks))]
        self.shares = np.array(self.counts) / sum(self.counts)
        self.deltas = [cut(draw(slots, "delta", seed, client), rank) * 0.5 for client, rank in enumerate(ranks)]
        held = [cut(state.adapter, rank) for rank in ranks]
        self.held = [
            start.to(torch.float64) + delta.to(torch.float64) for start, delta in zip(held, self.deltas, strict=True)
        ]

    def size(self) -> float:
        """Return s ||B_k|| ||A_k|| of the largest client: what float32 factors are rounded in proportion to."""
        return max(SCALE * float(own["q.B"].norm() * own["q.A"].norm()) for own in self.held)

    def mean_product(self) -> Array:
        found: Array = np.asarray(sum(p * product(own) for p, own in zip(self.shares, self.held, strict=True)))
        return found

    def mean_of(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return the mean of one slot, zero where a client has nothing."""
        total = np.zeros(shape)
        for share, own in zip(self.shares, self.held, strict=True):
            total[tuple(slice(size) for size in own[name].shape)] += share * own[name].numpy()
        return total

    def after(self, *, order: int = 1) -> State:
        total = self.strategy.start()
        for client in list(range(len(self.ranks)))[::order]:
            asked = self.strategy.directive(self.slots, self.state, round_number=1, client=client)
            assert asked.rank == self.ranks[client]
            update = ClientUpdate(
                client=client, delta=self.deltas[client], num_examples=self.counts[client], directive=asked
            )
            total = self.strategy.accumulate(total, self.strategy.prepare(self.slots, self.state, update))
        return self.strategy.apply(self.slots, self.state, total)


def drawn(name: str, shape: tuple[int, int, int], ranks: list[int], seed: int, **options: Any) -> Round:
    """Return a first round; ranks are lowered to the server's."""
    ranks, slots = [min(rank, shape[2]) for rank in ranks], slots_of(*shape)
    strategy = strategy_of(name, client_rank=tuple(ranks), **options)
    strategy.check(slots)
    return Round(strategy, slots, strategy.init(slots, draw(slots, "adapter", seed)), ranks, seed)


def residual(given: Round, state: State) -> Array:
    parts = given.strategy.residual_parts(given.slots, state)
    found: Array = given.strategy.residuals(given.slots, parts)["q"].numpy().astype(np.float64)
    return found


ranks_of = st.lists(st.integers(1, 8), min_size=1, max_size=8)


@pytest.mark.parametrize("name", MERGING)
@few
@given(shape=sides, rounds=st.lists(ranks_of, min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_what_is_merged_is_the_mean_of_the_clients_models(
    name: str, shape: tuple[int, int, int], rounds: list[list[int]], seed: int
) -> None:
    """Clients of rank r_k hold W + residual + s B_k A_k with r_k ranks; the server holds the mean of these after."""
    state = None
    for number, ranks in enumerate(rounds):
        given_round = drawn(name, shape, ranks, seed + number)
        if state is not None:
            given_round = Round(given_round.strategy, given_round.slots, state, given_round.ranks, seed + number)
        before = residual(given_round, given_round.state)
        ideal = before + given_round.mean_product()

        state = given_round.after()

        found = residual(given_round, state) + product(state.adapter)
        size = given_round.size() + float(np.linalg.norm(before))
        assert np.linalg.norm(found - ideal) <= 1e-6 * max(size, float(np.linalg.norm(ideal)))
        np.testing.assert_allclose(state.adapter["head"], given_round.mean_of("head", (3,)), rtol=1e-5, atol=1e-6)


@few
@given(shape=sides, ranks=ranks_of, seed=st.integers(0, 1000))
def test_fedex_averages_factors_with_zeros_and_leaves_a_where_nobody_held_it(
    shape: tuple[int, int, int], ranks: list[int], seed: int
) -> None:
    given_round = drawn("fedex_lora", shape, ranks, seed)
    most, before = max(given_round.ranks), given_round.state.adapter

    found = given_round.after().adapter

    for name, cuts in (("q.A", np.s_[:most]), ("q.B", np.s_[:, :most])):
        mean = given_round.mean_of(name, tuple(before[name].shape))
        np.testing.assert_allclose(found[name].numpy()[cuts], mean[cuts], rtol=1e-5, atol=1e-6)
    assert torch.equal(found["q.A"][most:], before["q.A"][most:])
    assert not found["q.B"][:, most:].any()


@few
@given(shape=sides, ranks=ranks_of, seed=st.integers(0, 1000))
def test_flora_sends_the_ranks_that_were_stacked_and_no_zeros(
    shape: tuple[int, int, int], ranks: list[int], seed: int
) -> None:
    given_round = drawn("flora", shape, ranks, seed)

    parts = given_round.strategy.residual_parts(given_round.slots, given_round.after())

    d_out, d_in, _ = shape
    assert parts.num_elements == min(sum(given_round.ranks) * (d_out + d_in), d_out * d_in)


@pytest.mark.parametrize("name", REFACTORING)
@few
@given(shape=sides, ranks=ranks_of, seed=st.integers(0, 1000), split=st.sampled_from(["balanced", "one_sided"]))
def test_what_is_factored_anew_is_the_nearest_product_and_so_is_each_of_its_first_ranks(
    name: str, shape: tuple[int, int, int], ranks: list[int], seed: int, split: str
) -> None:
    """Eckart and Young for every client: the b ranks it is sent are the best it could be sent."""
    given_round = drawn(name, shape, ranks, seed, split=split)
    ideal = given_round.mean_product()
    bound = 1e-6 * np.linalg.norm(ideal)

    found = given_round.after().adapter

    np.testing.assert_allclose(found["head"], given_round.mean_of("head", (3,)), rtol=1e-5, atol=1e-6)
    for rank in {*given_round.ranks, shape[2]}:
        error, least = (np.linalg.norm(ideal - near) for near in (product(cut(found, rank)), truncated(ideal, rank)))
        assert error <= least + bound
    if min(sum(given_round.ranks), *shape[:2]) <= shape[2]:
        assert np.linalg.norm(product(found) - ideal) <= bound


@few
@given(shape=sides, ranks=ranks_of, seed=st.integers(0, 1000), tau=st.floats(0.05, 1.0))
def test_florist_keeps_the_fewest_values_of_unequal_ranks(
    shape: tuple[int, int, int], ranks: list[int], seed: int, tau: float
) -> None:
    given_round = drawn("florist", shape, ranks, seed, tau=tau)
    ideal = given_round.mean_product()
    s = np.linalg.svd(ideal, compute_uv=False)
    energy = np.cumsum(s**2) / np.sum(s**2)
    kept = min(next(count for count in range(1, len(s) + 1) if energy[count - 1] >= tau - 1e-12), shape[2])

    found = given_round.after().adapter

    assert np.linalg.norm(product(found) - truncated(ideal, kept)) <= 1e-6 * np.linalg.norm(ideal)
    assert not found["q.B"][:, kept:].any()


@every
def test_one_client_of_few_ranks_gets_its_product_back(name: str) -> None:
    given_round = drawn(name, (7, 6, 4), [2], 1)

    after = given_round.after()

    merged_in = residual(given_round, after) if name in MERGING else 0.0
    np.testing.assert_allclose(product(after.adapter) + merged_in, product(given_round.held[0]), rtol=1e-5, atol=1e-5)


@every
def test_all_ranks_written_out_are_to_the_bit_all_ranks(name: str) -> None:
    written = drawn(name, (7, 6, 4), [4, 4, 4], 1)
    unset = Round(strategy_of(name), written.slots, written.state, [None] * 3, 1)  # type: ignore[list-item]

    assert written.after() == unset.after()


@every
def test_the_order_of_unequal_clients_changes_no_bit(name: str) -> None:
    given_round = drawn(name, (7, 6, 4), [1, 4, 2, 3], 1)

    assert given_round.after() == given_round.after(order=-1)


@every
def test_an_update_of_another_rank_is_refused_by_name(name: str) -> None:
    given_round = drawn(name, (7, 6, 4), [2, 3], 1)
    asked = given_round.strategy.directive(given_round.slots, given_round.state, round_number=1, client=0)
    wrong = ClientUpdate(client=5, delta=given_round.deltas[1], num_examples=1, directive=asked)

    with pytest.raises(TensorMismatchError, match=r"update of client 5: tensor 0 is q\.A \[3, 6\]"):
        given_round.strategy.prepare(given_round.slots, given_round.state, wrong)


TAKING = ["fedex_lora", "flexlora", "flora", "florist", "hetlora"]


@pytest.mark.parametrize("name", plugins.names("strategy"))
def test_every_other_strategy_refuses_ranks_of_clients_and_names_those_that_take_them(name: str) -> None:
    table = merged(TINY_VIT, {"strategy": {"name": name, "client_rank": [1, 2]}})
    if name in TAKING:
        config.parse(table)
        return
    words = f"strategy.client_rank: unknown key of this strategy; these take it: {', '.join(TAKING)}"
    with pytest.raises(ConfigError, match=words):
        config.parse(table)
