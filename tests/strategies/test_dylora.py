"""dylora: one rank a round for everybody, the specification's vector through a real layer, and what stays still."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedpeft.adapters import lora
from fedpeft.adapters.base import Attached, Slot
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import generator
from fedpeft.strategies.base import ClientUpdate, Directive, State
from fedpeft.strategies.dylora import DyLora, Options, make
from fedpeft.strategies.ranks import padded, sliced
from fedpeft.tensors import Tensors
from fedpeft.training.holding import holding
from tests.strategies.test_ranks import draw, slots_of

A4 = torch.arange(1.0, 13.0).reshape(4, 3)
B4 = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, 3.0]])
GRADIENT = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]])
OPTIMIZERS = {
    "adamw": lambda given: torch.optim.AdamW(given, lr=0.05, weight_decay=0.1),
    "sgd": lambda given: torch.optim.SGD(given, lr=0.05, momentum=0.9, weight_decay=0.1),
}


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x)
        return found


def attached(rank: int = 4, alpha: float = 8.0) -> tuple[lora.Lora, Attached]:
    adapter, model = lora.make(lora.Options(rank=rank, alpha=alpha, target_modules=("inner",))), OneLayer()
    nn.init.constant_(model.inner.weight, 0.5)
    return adapter, adapter.attach(model, adapter.plan(model, seed=0))


def drawn(strategy: DyLora, slots: tuple[Slot, ...], rounds: int = 60) -> list[int]:
    state = State(adapter=draw(slots))
    found = [strategy.directive(slots, state, round_number=number, client=0).rank for number in range(1, rounds + 1)]
    return [rank for rank in found if rank is not None]


def in_round_of(strategy: DyLora, slots: tuple[Slot, ...], rank: int) -> Directive:
    """Return the directive of the first round that draws a rank."""
    number = drawn(strategy, slots).index(rank) + 1
    return strategy.directive(slots, State(adapter=draw(slots)), round_number=number, client=0)


def test_the_vector_of_the_specification_through_the_layer() -> None:
    adapter, model = attached()
    directive = in_round_of(make(Options()), model.slots, 2)
    whole = Tensors({"inner.lora_A": A4, "inner.lora_B": B4})
    model.write(padded(sliced(whole, model.slots, rank=2), model.slots, rank=2))

    with adapter.scaled(model, directive.scale):
        x = torch.eye(3)
        found = model.model(x) - 0.5 * x.sum(1, keepdim=True)
        (found * GRADIENT.T).sum().backward()  # type: ignore[no-untyped-call]

    assert directive == Directive(rank=2, scale=2.0)
    assert found.T.tolist() == [[4, 8, 12], [16, 20, 24]]
    a, b = (model.parameters()[name].grad for name in ("inner.lora_A", "inner.lora_B"))
    assert a is not None
    assert b is not None
    assert a.tolist() == [[4, 8, 12], [-4, 0, 4], [0, 0, 0], [0, 0, 0]]
    assert b.tolist() == [[56, 128, 0, 0], [8, 8, 0, 0]]


def _steps(model: Attached, optimizer: torch.optim.Optimizer, count: int = 5) -> Iterator[None]:
    x, y = (torch.randn(6, width, generator=generator(0, width)) for width in (3, 2))
    for _ in range(count):
        optimizer.zero_grad()
        ((model.model(x) - y) ** 2).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters().values(), 0.1)
        optimizer.step()
        yield


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_zero_padded_slice_trains_as_an_adapter_of_its_own_rank(name: str, rank: int) -> None:
    """The oracle is peft at that rank with alpha / rank: the padding stays zero and the rest is the same training."""
    adapter, big = attached(rank=4, alpha=8.0)
    _, small = attached(rank=rank, alpha=8.0)
    whole = Tensors({"inner.lora_A": A4 / 10, "inner.lora_B": B4})
    part = sliced(whole, big.slots, rank=rank)
    small.write(part)
    big.write(padded(part, big.slots, rank=rank))

    with adapter.scaled(big, 4 / rank):
        optimizers = [OPTIMIZERS[name](list(model.parameters().values())) for model in (big, small)]
        for _ in zip(_steps(big, optimizers[0]), _steps(small, optimizers[1]), strict=True):
            now = big.read()
            assert padded(sliced(now, big.slots, rank=rank), big.slots, rank=rank).digest() == now.digest()

    assert (sliced(big.read(), big.slots, rank=rank) - part).norm() > 0.1
    for slot, value in sliced(big.read(), big.slots, rank=rank).items():
        torch.testing.assert_close(value, small.read()[slot], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_held_ranks_keep_their_bits_and_the_last_trains_as_if_alone(name: str) -> None:
    """The oracle folds the held ranks into the base weight and trains an adapter of rank 1 with the same scale."""
    adapter, big = attached(rank=4, alpha=8.0)
    _, small = attached(rank=1, alpha=8.0 / 3)
    whole = Tensors({"inner.lora_A": A4 / 10, "inner.lora_B": B4})
    big.write(padded(sliced(whole, big.slots, rank=3), big.slots, rank=3))
    small.write(sliced(whole, big.slots, rank=3, held=2))
    with torch.no_grad():
        base = small.model.get_parameter("inner.base_layer.weight")
        base += 8 / 3 * B4[:, :2] @ (A4 / 10)[:2]

    with adapter.scaled(big, 4 / 3), holding(big, 2):
        optimizers = [OPTIMIZERS[name](list(model.parameters().values())) for model in (big, small)]
        for _ in zip(_steps(big, optimizers[0]), _steps(small, optimizers[1]), strict=True):
            pass

    after = big.read()
    assert sliced(after, big.slots, rank=2) == sliced(whole, big.slots, rank=2)
    for slot, value in sliced(after, big.slots, rank=3, held=2).items():
        assert (value - whole[slot].select(0 if slot.endswith("A") else 1, 2).reshape(value.shape)).norm() > 0.01
        torch.testing.assert_close(value, small.read()[slot], rtol=1e-4, atol=1e-6)
    list(_steps(big, OPTIMIZERS["sgd"](list(big.parameters().values())), count=1))
    assert sliced(big.read(), big.slots, rank=2) != sliced(whole, big.slots, rank=2), "it is over after the block"


def test_the_rank_is_the_same_for_all_clients_and_uniform_over_the_rounds() -> None:
    slots, strategy = slots_of((4, 4)), make(Options())
    state = State(adapter=draw(slots))

    for number in range(1, 20):
        directives = {strategy.directive(slots, state, round_number=number, client=k) for k in range(5)}
        assert len(directives) == 1
    counts = np.bincount(drawn(strategy, slots, rounds=2000), minlength=5)
    assert counts[0] == 0
    assert (abs(counts[1:] - 500) < 100).all()
    assert drawn(strategy, slots) == drawn(make(Options()), slots)
    assert drawn(strategy, slots) != drawn(make(Options(seed=1)), slots)
    assert set(drawn(make(Options(min_rank=3)), slots)) == {3, 4}
    assert set(drawn(make(Options(min_rank=4)), slots)) == {4}


def test_pairs_of_several_ranks_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"strategy 'dylora' draws one rank .* ranks \[2, 3\]"):
        make(Options()).check(slots_of((3, 2)))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 8), st.lists(st.integers(1, 50), min_size=1, max_size=8), st.booleans(), st.integers(1, 9), st.data()
)
def test_a_round_against_numpy(most: int, counts: list[int], frozen: bool, number: int, data: st.DataObject) -> None:
    slots, strategy = slots_of((most, most)), make(Options(frozen=frozen, seed=data.draw(st.integers(0, 99))))
    adapter = {name: tensor.masked_fill(tensor.abs() < 0.5, -0.0) for name, tensor in draw(slots).items()}
    state = State(adapter=Tensors(adapter))
    deltas = [draw(slots, client) for client in range(len(counts))]

    after, asked = _round(strategy, slots, state, deltas, counts, number)

    assert asked.rank is not None
    assert asked.scale == most / asked.rank
    weights = np.array(counts) / sum(counts)
    for name, value in after.adapter.items():
        step: Any = sum(w * d[name].numpy().astype(np.float64) for w, d in zip(weights, deltas, strict=True))
        trains = np.zeros(most, dtype=bool)
        trains[asked.rank - 1 if frozen else 0 : asked.rank] = True
        moved = np.ones(value.shape, dtype=bool)
        if name != "head":
            moved &= trains[:, None] if name.endswith("A") else trains[None, :]
        before = state.adapter[name].numpy()
        np.testing.assert_allclose(value.numpy()[moved], (before + step)[moved], rtol=1e-6, atol=1e-6)
        assert value.numpy()[~moved].tobytes() == before[~moved].tobytes()


def _round(
    strategy: DyLora, slots: tuple[Slot, ...], state: State, deltas: list[Tensors], counts: list[int], number: int
) -> tuple[State, Directive]:
    total = strategy.start()
    for client, (delta, count) in enumerate(zip(deltas, counts, strict=True)):
        asked = strategy.directive(slots, state, round_number=number, client=client)
        part = sliced(delta, slots, rank=asked.rank, held=asked.held)
        update = ClientUpdate(client=client, delta=part, num_examples=count, directive=asked)
        total = strategy.accumulate(total, strategy.prepare(slots, state, update))
    return strategy.apply(slots, state, total), asked
