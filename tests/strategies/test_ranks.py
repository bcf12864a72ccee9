"""Slices of pairs: cut, sent, put back, and summed where clients hold unequal ranks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft import plugins
from fedpeft.adapters.base import Algebra, Slot
from fedpeft.errors import TensorMismatchError, UnsupportedError
from fedpeft.seeds import generator
from fedpeft.strategies.base import Directive
from fedpeft.strategies.ranks import added, extended, first_of, padded, sliced
from fedpeft.tensors import Spec, Tensors


def all_of(slots: tuple[Slot, ...]) -> list[Spec]:
    """An uplink of everything."""
    return [slot.spec for slot in slots if slot.travels]


def slots_of(ranks: tuple[int, ...]) -> tuple[Slot, ...]:
    """Return one pair for each rank, the n-th of scale 1 + 2 n, a head shaped like a factor, and a slot that stays."""
    factors = [
        Slot(
            name=f"{group}.{role}",
            shape=shape,
            algebra=Algebra.BILINEAR,
            group=str(group),
            role=role,
            scale=1.0 + 2 * group,
        )
        for group, rank in enumerate(ranks)
        for role, shape in (("A", (rank, 3 + group)), ("B", (2 + group, rank)))
    ]
    head = Slot(name="head", shape=(ranks[0], 3), algebra=Algebra.LINEAR, group="head", role="head")
    return (*factors, head, Slot(name="own", shape=(4,), algebra=Algebra.LOCAL, group="own", role="head"))


def draw(slots: tuple[Slot, ...], *purpose: int | str) -> Tensors:
    return Tensors(
        (slot.name, torch.randn(slot.shape, generator=generator(5, slot.name, *purpose)))
        for slot in slots
        if slot.travels
    )


def test_a_slice_is_rows_of_a_and_columns_of_b_and_the_head_is_whole() -> None:
    slots = slots_of((4,))
    whole = Tensors(
        {
            "0.A": torch.arange(12.0).reshape(4, 3),
            "0.B": torch.arange(8.0).reshape(2, 4),
            "head": torch.ones(4, 3),
        }
    )

    part = sliced(whole, slots, rank=3, held=1)

    assert part["0.A"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert part["0.B"].tolist() == [[1, 2], [5, 6]]
    assert part["head"] is whole["head"]
    back = padded(part, slots, rank=3, held=1)
    assert back["0.A"].tolist() == [[0, 0, 0], [3, 4, 5], [6, 7, 8], [0, 0, 0]]
    assert back["0.B"].tolist() == [[0, 1, 2, 0], [0, 5, 6, 0]]
    assert back["head"] is whole["head"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple), st.data())
def test_padding_is_the_inverse_of_slicing(ranks: tuple[int, ...], data: st.DataObject) -> None:
    slots = slots_of(ranks)
    rank = data.draw(st.integers(1, min(ranks)))
    held = data.draw(st.integers(0, rank - 1))
    directive = Directive(rank=rank, held=held)
    whole = draw(slots)

    part = sliced(whole, slots, rank=rank, held=held)
    back = padded(part, slots, rank=rank, held=held)

    assert part.manifest() == directive.select(slots, all_of(slots))
    assert all(tensor.is_contiguous() for tensor in part.values())
    assert back.manifest() == whole.manifest()
    assert sliced(back, slots, rank=rank, held=held) == part
    assert directive.sent(slots, whole.manifest()) == sliced(whole, slots, rank=rank).manifest()
    for name, tensor in back.items():
        outside = tensor != 0
        assert torch.equal(tensor[outside], whole[name][outside])
        if name != "head":
            assert int(outside.sum()) == part[name].numel()


def test_all_ranks_is_the_tensors_themselves() -> None:
    slots = slots_of((2, 5))
    whole = draw(slots)

    assert sliced(whole, slots, rank=None) is whole
    assert padded(whole, slots, rank=None) is whole
    assert Directive().select(slots, all_of(slots)) == whole.manifest()
    assert Directive(train=("1.B", "head")).select(slots, all_of(slots)) == whole.select(["1.B", "head"]).manifest()
    assert Directive(train=("1.B",), rank=2).select(slots, all_of(slots)) == (
        Spec(name="1.B", shape=(3, 2), dtype="float32"),
    )


@pytest.mark.parametrize(("rank", "held"), [(3, 0), (0, 0), (2, 2), (2, -1), (None, 2)])
def test_ranks_that_a_pair_does_not_have_are_refused_by_its_name(rank: int | None, held: int) -> None:
    slots = slots_of((2,))
    whole = draw(slots)

    with pytest.raises(UnsupportedError, match=r"0\.A: ranks .* of 2"):
        sliced(whole, slots, rank=rank, held=held)
    with pytest.raises(UnsupportedError, match=r"0\.A: ranks .* of 2"):
        padded(whole, slots, rank=rank, held=held)
    with pytest.raises(UnsupportedError, match=r"0\.A: ranks .* of 2"):
        Directive(rank=rank, held=held).select(slots, all_of(slots))


@pytest.mark.parametrize("name", ["0.A", "0.B", "head"])
def test_a_slice_of_another_size_is_not_padded(name: str) -> None:
    slots = slots_of((4,))
    part = dict(sliced(draw(slots), slots, rank=2))
    part[name] = torch.zeros(1, 1)

    with pytest.raises(TensorMismatchError, match=rf"update of client 3: tensor \d is {name} \[1, 1\]"):
        padded(Tensors(part), slots, rank=2, where="update of client 3")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_a_sum_of_unequal_slices_is_that_of_the_padded_ones(ranks: list[int]) -> None:
    slots = slots_of((6, 8))
    parts = [sliced(draw(slots, client), slots, rank=rank) for client, rank in enumerate(ranks)]

    total = parts[0]
    for part in parts[1:]:
        total = added(total, part)

    expected = padded(parts[0], slots, rank=ranks[0])
    for part, rank in list(zip(parts, ranks, strict=True))[1:]:
        expected = expected + padded(part, slots, rank=rank)
    assert total.manifest() == sliced(expected, slots, rank=max(ranks)).manifest()
    assert (extended(total, expected) - expected).norm() == 0
    assert (first_of(expected, total) - total).norm() == 0


def test_slices_of_different_names_are_not_added() -> None:
    whole = draw(slots_of((2,)))

    with pytest.raises(TensorMismatchError, match=r"'head'"):
        added(whole, whole.select(["0.A", "0.B"]))
    with pytest.raises(TensorMismatchError, match=r"'head'"):
        added(whole.select(["0.A", "0.B"]), whole)


OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("hetlora", {"client_rank": (2, 5)}, r"strategy 'hetlora': client_rank has 5, expected 1 to 4"),
    *(
        (name, {"client_rank": (2, 5)}, rf"strategy '{name}': client_rank has 5, expected 1 to 4")
        for name in ("fedex_lora", "flexlora", "flora", "florist")
    ),
    ("dylora", {"min_rank": 5}, r"strategy 'dylora': min_rank has 5, expected 1 to 4"),
]


@pytest.mark.parametrize(("name", "options", "match"), OPTIONS)
def test_more_ranks_than_the_smallest_pair_has_are_refused(name: str, options: dict[str, Any], match: str) -> None:
    module = plugins.load("strategy", name)

    with pytest.raises(UnsupportedError, match=match):
        module.make(module.Options(**options)).check(slots_of((6, 4)))
