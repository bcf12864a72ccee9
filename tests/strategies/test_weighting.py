"""The streamed mean against NumPy, which holds all updates and sums them in float64."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.errors import RunError, TensorMismatchError
from fedpeft.seeds import generator
from fedpeft.strategies import fedavg
from fedpeft.strategies.base import ClientUpdate, State, WeightedSum
from fedpeft.strategies.weighting import Weighting, accumulate_weighted, apply_mean
from fedpeft.tensors import Tensors

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4)
COUNTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=8)


def draw(shapes: list[tuple[int, ...]], *purpose: int | str) -> Tensors:
    values = generator(0, *purpose)
    return Tensors((f"t{index}", torch.randn(shape, generator=values)) for index, shape in enumerate(shapes))


def aggregate(adapter: Tensors, updates: list[ClientUpdate], weighting: Weighting) -> Tensors:
    strategy = fedavg.make(fedavg.Options(weighting=weighting))
    total = WeightedSum()
    for update in updates:
        total = strategy.accumulate(total, update)
    return strategy.apply((), State(adapter=adapter), total).adapter


@settings(max_examples=60, deadline=None)
@given(shapes=SHAPES, counts=COUNTS, weighting=st.sampled_from(["examples", "uniform"]))
def test_fedavg_is_the_weighted_mean_of_numpy(
    shapes: list[tuple[int, ...]], counts: list[int], weighting: Weighting
) -> None:
    adapter = draw(shapes, "adapter")
    updates = [
        ClientUpdate(client=k, delta=draw(shapes, "delta", k), num_examples=count) for k, count in enumerate(counts)
    ]

    found = aggregate(adapter, updates, weighting)

    weights = np.array(counts if weighting == "examples" else [1] * len(counts), dtype=np.float64)
    for name, before in adapter.items():
        stack = np.stack([update.delta[name].numpy().astype(np.float64) for update in updates])
        expected = before.numpy().astype(np.float64) + np.tensordot(weights / weights.sum(), stack, axes=1)
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-6, atol=1e-7)


def test_numbers_by_hand() -> None:
    """(1 * [4, 0] + 3 * [0, 8]) / 4 = [1, 6], and uniformly [2, 4]; from [10, 20]."""
    adapter = Tensors({"w": torch.tensor([10.0, 20.0])})
    updates = [
        ClientUpdate(client=0, delta=Tensors({"w": torch.tensor([4.0, 0.0])}), num_examples=1),
        ClientUpdate(client=1, delta=Tensors({"w": torch.tensor([0.0, 8.0])}), num_examples=3),
    ]

    assert aggregate(adapter, updates, "examples")["w"].tolist() == [11.0, 26.0]
    assert aggregate(adapter, updates, "uniform")["w"].tolist() == [12.0, 24.0]


def test_slots_that_were_not_trained_stay() -> None:
    adapter = Tensors({"a": torch.ones(2), "b": torch.ones(2)})
    update = ClientUpdate(client=0, delta=Tensors({"b": torch.ones(2)}), num_examples=5)

    found = aggregate(adapter, [update], "examples")

    assert (found["a"].tolist(), found["b"].tolist()) == ([1.0, 1.0], [2.0, 2.0])


def test_many_small_updates_lose_nothing_to_rounding() -> None:
    """In float32, 1e-8 added to a sum near 1 is lost; in the float64 sum it is not."""
    total = WeightedSum()
    for value in [1.0, *[1e-8] * 1000]:
        update = ClientUpdate(client=0, delta=Tensors({"w": torch.tensor([value])}), num_examples=1)
        total = accumulate_weighted(total, update, weighting="uniform")

    assert total.tensors is not None
    assert total.tensors["w"].item() == pytest.approx(1.00001, rel=1e-12)


def test_the_total_holds_one_adapter_however_many_clients_reply() -> None:
    total, sizes = WeightedSum(), []
    for client in range(20):
        update = ClientUpdate(client=client, delta=draw([(3, 4)], client), num_examples=2)
        total = accumulate_weighted(total, update, weighting="examples")
        assert total.tensors is not None
        sizes.append(total.tensors.num_elements)

    assert set(sizes) == {12}
    assert {field.name for field in fields(total)} == {"tensors", "weight", "num_updates"}
    assert (total.weight, total.num_updates) == (40.0, 20)
    assert total.tensors is not None
    assert {tensor.dtype for tensor in total.tensors.values()} == {torch.float64}


def test_updates_that_weigh_nothing_have_no_mean() -> None:
    state = State(adapter=Tensors({"w": torch.ones(1)}))
    update = ClientUpdate(client=0, delta=Tensors({"w": torch.ones(1)}), num_examples=0)
    total = accumulate_weighted(WeightedSum(), update, weighting="examples")

    with pytest.raises(RunError, match="expected weight > 0"):
        apply_mean(state, total)


def test_a_slot_the_adapter_lacks_is_refused_by_name() -> None:
    update = ClientUpdate(client=0, delta=Tensors({"other": torch.ones(1)}), num_examples=1)
    total = accumulate_weighted(WeightedSum(), update, weighting="examples")

    with pytest.raises(TensorMismatchError, match="'other'"):
        apply_mean(State(adapter=Tensors({"w": torch.ones(1)})), total)
