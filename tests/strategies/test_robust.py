"""median, trimmed_mean and krum against NumPy, by hand, and against clients that send anything."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpeft import plugins
from fedpeft.errors import RunError
from fedpeft.seeds import generator
from fedpeft.strategies.base import ClientUpdate, State
from fedpeft.tensors import Tensors

Array = np.ndarray[Any, np.dtype[np.float64]]
NAN, INF, HUGE = float("nan"), float("inf"), 1e30
BY_DEFAULT = {"median": 5, "trimmed_mean": 5, "krum": 5}
"""Clients in the tests of damage: two, one and one of them may send anything."""
every_rule = pytest.mark.parametrize("name", BY_DEFAULT)


def aggregate(name: str, deltas: dict[int, Tensors], **options: Any) -> Tensors:
    """Return the adapter after one round from -0.0, which keeps a zero's sign; clients arrive in the given order."""
    module = plugins.load("strategy", name)
    strategy = module.make(module.Options(**options))
    total = strategy.start()
    for client, delta in deltas.items():
        total = strategy.accumulate(total, ClientUpdate(client=client, delta=delta, num_examples=10**client))
    start = next(iter(deltas.values())).zeros() * -1.0
    adapter: Tensors = strategy.apply((), State(adapter=start), total).adapter
    return adapter


def rows(*values: list[float]) -> dict[int, Tensors]:
    return {client: Tensors({"w": torch.tensor(row)}) for client, row in enumerate(values)}


def found(name: str, *values: list[float], **options: Any) -> list[float]:
    listed: list[float] = aggregate(name, rows(*values), **options)["w"].tolist()
    return listed


def test_median_by_hand() -> None:
    assert found("median", [3.0, -1.0], [1.0, 5.0], [2.0, 100.0]) == [2.0, 5.0]
    assert found("median", [3.0, 8.0], [1.0, 5.0], [2.0, -9.0], [10.0, 6.0]) == [2.5, 5.5]


def test_trimmed_mean_by_hand() -> None:
    """Without 0 and 100 the mean of 1, 2, 6 is 3; without two at each end 2 is left."""
    values = ([100.0], [1.0], [6.0], [2.0], [0.0])

    assert found("trimmed_mean", *values) == [3.0]
    assert found("trimmed_mean", *values, num_trimmed=2) == [2.0]


def test_krum_by_hand() -> None:
    """n = 5, f = 1, two nearest: 0: 1 + 4 = 5; 1: 1 + 1 = 2; 2: 1 + 4 = 5; 4: 4 + 9 = 13; 50: far. Scores pick 1.

    Multi-krum with two takes 1 and, of 0 and 2, which score alike, the smaller client.
    """
    values = ([4.0], [2.0], [1.0], [0.0], [50.0])

    assert found("krum", *values) == [1.0]
    assert found("krum", *values, num_selected=2) == [1.5]
    assert found("krum", [4.0], [0.0], [1.0], [2.0], [50.0], num_selected=2) == [0.5]


def test_krum_measures_all_slots_together() -> None:
    """Client 0 is nearest in slot a alone, client 1 in both together."""
    values = [(0.0, 9.0), (1.0, 0.0), (2.0, 0.0), (0.0, -9.0), (-1.0, 1.0)]
    deltas = {k: Tensors({"a": torch.tensor([a]), "b": torch.tensor([b])}) for k, (a, b) in enumerate(values)}

    adapter = aggregate("krum", deltas)

    assert (adapter["a"].item(), adapter["b"].item()) == (1.0, 0.0)


def test_of_equal_scores_krum_takes_the_smaller_client_whoever_comes_first() -> None:
    """On a square with f = 0 all four score 1 + 1."""
    square = rows([0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0])
    for order in permutations(square):
        adapter = aggregate("krum", {client: square[client] for client in order}, num_byzantine=0)
        assert adapter["w"].tolist() == [0.0, 0.0]


def _krum(stack: Array, f: int, m: int) -> Array:
    flat = stack.reshape(len(stack), -1)
    distances = ((flat[:, None] - flat[None]) ** 2).sum(axis=-1)
    scores = np.sort(distances, axis=1)[:, 1 : len(stack) - f - 1].sum(axis=1)
    mean: Array = stack[np.argsort(scores.round(9), kind="stable")[:m]].mean(axis=0)
    return mean


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(BY_DEFAULT)),
    shape=st.lists(st.integers(1, 8), max_size=2),
    num_clients=st.integers(1, 8),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_they_are_those_of_numpy(name: str, shape: list[int], num_clients: int, data: Any, seed: int) -> None:
    values = generator(seed, name)
    options: dict[str, int] = {}
    if name == "trimmed_mean":
        num_clients = max(num_clients, 3)
        options = {"num_trimmed": data.draw(st.integers(1, (num_clients - 1) // 2))}
    if name == "krum":
        num_clients = max(num_clients, 3)
        f = data.draw(st.integers(0, (num_clients - 3) // 2))
        options = {"num_byzantine": f, "num_selected": data.draw(st.integers(1, num_clients - f))}
    deltas = {k: Tensors({"w": torch.randn(shape, generator=values)}) for k in range(num_clients)}

    got = aggregate(name, deltas, **options)["w"]

    stack = np.stack([delta["w"].numpy().astype(np.float64) for delta in deltas.values()])
    trim = options.get("num_trimmed", 0)
    rules: dict[str, Callable[[], Array]] = {
        "median": lambda: np.median(stack, axis=0),
        "trimmed_mean": lambda: np.sort(stack, axis=0)[trim : num_clients - trim].mean(axis=0),
        "krum": lambda: _krum(stack, options["num_byzantine"], options["num_selected"]),
    }
    expected = rules[name]()
    assert (got.dtype, tuple(got.shape)) == (torch.float32, tuple(shape))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-7)


@every_rule
def test_any_order_of_clients_gives_the_same_bits(name: str) -> None:
    deltas = {k: Tensors({"w": torch.randn(3, generator=generator(5, k))}) for k in range(5)}
    digests = {aggregate(name, {k: deltas[k] for k in order}).digest() for order in [*permutations(deltas)][::7]}

    assert len(digests) == 1


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_it_does_not_matter_who_sent_which_update_and_zeros_of_either_sign_are_one(name: str) -> None:
    values = [[0.0, 0.1], [-0.0, 0.2], [0.0, 1e8], [-0.0, -1e8], [-0.0, 0.3]]
    digests = {aggregate(name, rows(*order)).digest() for order in [*permutations(values)][::7]}

    assert len(digests) == 1


@every_rule
@pytest.mark.parametrize("bad", [HUGE, -HUGE, 3e38, NAN, INF, -INF])
def test_one_client_may_send_anything(name: str, bad: float) -> None:
    """The others lie within 0.1 of (1, -1), and so does the result, whichever client is the bad one."""
    others = [[1.0, -1.0], [1.1, -1.1], [0.9, -0.9], [1.05, -0.95]]
    for place in range(5):
        values = [*others[:place], [bad, 0.0], *others[place:]]
        first, second = found(name, *values)
        assert 0.9 <= first <= 1.1 + 1e-6
        assert -1.1 - 1e-6 <= second <= 0.0


def test_multi_krum_averages_honest_clients_alone() -> None:
    others = [[1.0, -1.0], [1.5, -1.5], [0.5, -0.5], [1.0, -1.0]]

    assert found("krum", [HUGE, NAN], *others, num_selected=4) == [1.0, -1.0]


@pytest.mark.parametrize(
    ("name", "num_bad", "says"),
    [
        ("median", 3, r"3 of 5 updates hold NaN or infinite entries: strategy 'median' withstands 2"),
        ("trimmed_mean", 2, r"2 of 5 updates hold NaN or infinite entries: strategy 'trimmed_mean' withstands 1"),
        ("krum", 4, r"4 of 5 updates hold NaN or infinite entries: strategy.num_byzantine = 1 withstands 1"),
    ],
)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_more_damage_than_a_rule_withstands_is_refused_with_both_numbers(
    name: str, num_bad: int, says: str, bad: float
) -> None:
    with pytest.raises(RunError, match=says):
        found(name, *[[bad]] * num_bad, *[[1.0]] * (5 - num_bad))


@pytest.mark.parametrize(
    ("name", "options", "num", "says"),
    [
        ("trimmed_mean", {"num_trimmed": 2}, 4, r"4 update\(s\) .*num_trimmed = 2 needs at least 5"),
        ("krum", {"num_byzantine": 2}, 6, r"6 update\(s\) .*num_byzantine = 2 with num_selected = 1 needs at least 7"),
        ("krum", {"num_byzantine": 0}, 2, r"2 update\(s\) .*num_byzantine = 0 with num_selected = 1 needs at least 3"),
        ("krum", {"num_selected": 5}, 5, r"5 update\(s\) .*num_byzantine = 1 with num_selected = 5 needs at least 6"),
    ],
)
def test_too_few_updates_are_refused_with_the_numbers(name: str, options: dict[str, int], num: int, says: str) -> None:
    with pytest.raises(RunError, match=says):
        found(name, *[[1.0]] * num, **options)
    assert found(name, *[[1.0]] * (num + 1), **options) == [1.0]


@every_rule
def test_the_number_of_examples_a_client_claims_counts_for_nothing(name: str) -> None:
    """``aggregate`` lets client k claim 10^k examples; turned round, the claims go to other updates."""
    values = [[5.0], [1.0], [3.0], [2.0], [9.0]]

    assert found(name, *values) == found(name, *values[::-1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("median", {"weighting": "examples"}),
        ("trimmed_mean", {"num_trimmed": 0}),
        ("krum", {"num_byzantine": -1}),
        ("krum", {"num_selected": 0}),
    ],
)
def test_options_out_of_bounds_or_without_effect_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        found(name, [1.0], **options)
