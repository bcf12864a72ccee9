"""fed_sb: cores between fixed bases are averaged exactly."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.adapters import lora, lora_sb
from fedpeft.adapters.base import Algebra, Slot
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import generator
from fedpeft.strategies.base import ClientUpdate
from fedpeft.strategies.fed_sb import Options, make
from fedpeft.tensors import Tensors
from tests.adapters.models import build

Array = np.ndarray[Any, np.dtype[np.float64]]
CORE = "q.core"
sizes = st.integers(min_value=1, max_value=8)


def slots_of(rank: int, d_out: int = 8, d_in: int = 8) -> tuple[Slot, ...]:
    bases = [
        Slot(name=f"q.{role}", shape=shape, algebra=Algebra.FROZEN, group="q", role=role)
        for role, shape in (("A", (rank, d_in)), ("B", (d_out, rank)))
    ]
    return (*bases, Slot(name=CORE, shape=(rank, rank), algebra=Algebra.LINEAR, group="q", role="core"))


def after(rank: int, start: Tensors, cores: list[torch.Tensor], counts: list[int]) -> Tensors:
    strategy, slots = make(Options()), slots_of(rank)
    strategy.check(slots)
    state, total = strategy.init(slots, start), strategy.start()
    for client, (core, count) in enumerate(zip(cores, counts, strict=True)):
        delta = Tensors({CORE: core}) - start
        total = strategy.accumulate(total, ClientUpdate(client=client, delta=delta, num_examples=count))
    return strategy.apply(slots, state, total).adapter


def test_by_hand() -> None:
    cores = [torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, -1.0]])]

    found = after(2, Tensors({CORE: torch.zeros(2, 2)}), cores, [1, 3])

    assert found[CORE].tolist() == [[0.25, 0.75], [1.25, -0.5]]


@settings(max_examples=25, deadline=None)
@given(num=sizes, rank=sizes, d_out=sizes, d_in=sizes, seed=st.integers(0, 1000))
def test_the_product_of_the_mean_is_the_mean_of_products(num: int, rank: int, d_out: int, d_in: int, seed: int) -> None:
    cores = [torch.randn(rank, rank, generator=generator(seed, k)) for k in range(num)]
    counts = [2 * k + 1 for k in range(num)]
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((d_out, rank)), rng.standard_normal((rank, d_in))

    found = after(rank, Tensors({CORE: torch.randn(rank, rank, generator=generator(seed, -1))}), cores, counts)

    ideal: Array = sum(
        n / sum(counts) * b @ r.numpy().astype(np.float64) @ a for n, r in zip(counts, cores, strict=True)
    )
    error = np.linalg.norm(b @ found[CORE].numpy().astype(np.float64) @ a - ideal)
    assert error <= 1e-6 * (np.linalg.norm(b) * np.linalg.norm(a) * max(float(r.norm()) for r in cores))


def test_r_squared_floats_a_layer_travel_whatever_its_sides() -> None:
    adapter, base, strategy = lora_sb.make(lora_sb.Options(rank=3)), build("bert"), make(Options())
    attached = adapter.attach(base, adapter.plan(base, seed=1))
    num_layers = len({slot.group for slot in attached.slots})

    assert sum(spec.num_elements for spec in strategy.downlink(attached.slots)) == 9 * num_layers
    assert sum(spec.num_elements for spec in attached.manifest()) == 9 * num_layers


def test_lora_has_no_core_and_is_refused() -> None:
    adapter, base = lora.make(lora.Options()), build("bert")
    slots = adapter.attach(base, adapter.plan(base, seed=1)).slots

    with pytest.raises(UnsupportedError, match=r"no linear core \(its roles: A, B\); use adapter 'lora_sb'"):
        make(Options()).check(slots)
