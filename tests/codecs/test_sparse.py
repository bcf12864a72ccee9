"""top_k and random_k: which entries arrive, under which seed, and chains of them."""

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.codecs import int8, none, random_k, top_k
from fedpeft.codecs.base import Codec, Common
from fedpeft.codecs.chain import chained
from fedpeft.errors import TensorMismatchError, UnsupportedError, WireError
from fedpeft.tensors import Tensors

COMMON = Common(roles={"a": "A", "b": "B"}, seed=11)


def through(codec: Codec, tensors: Tensors, common: Common = COMMON) -> Tensors:
    """Encode and decode."""
    return codec.decode(codec.encode(tensors, common), tensors.manifest(), common)


def drawn(num_entries: int, seed: int = 0) -> torch.Tensor:
    """Draw numbers of which none is 0."""
    return torch.randn(num_entries, generator=torch.Generator().manual_seed(seed)) + 4


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_top_k_keeps_the_largest_of_each_class_bit_for_bit(data: st.DataObject) -> None:
    value = st.sampled_from([0.0, 1.0, -1.0, 2.0]) | st.floats(width=32, allow_nan=False, allow_infinity=False)
    sizes = data.draw(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 12)))
    tensors = Tensors(
        (name, torch.tensor(data.draw(st.lists(value, min_size=n, max_size=n)))) for name, n in sizes.items()
    )
    density = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))

    found = through(top_k.TopK(top_k.Options(density=density)), tensors)

    for names in (("a",), ("b",), ("c", "d")):
        entries = [(name, i) for name in tensors if name in names for i in range(tensors[name].numel())]
        values = [tensors[name][i].item() for name, i in entries]
        k = max(1 if density and entries else 0, int(density * len(entries) + 0.5))
        kept = sorted(range(len(entries)), key=lambda place, v=values: (-abs(v[place]), place))[:k]  # type: ignore[misc]
        assert [found[n][i].item() for n, i in entries] == [v if p in kept else 0 for p, v in enumerate(values)]


def test_top_k_of_all_is_lossless() -> None:
    tensors, codec = Tensors({"a": drawn(40).reshape(5, 8), "b": drawn(3)}), top_k.TopK(top_k.Options(density=1.0))
    assert through(codec, tensors) == tensors
    assert codec.error_bound(tensors, COMMON) == 0


def test_top_k_refuses_poisoned_values() -> None:
    tensors, codec = Tensors({"a": drawn(40)}), top_k.TopK(top_k.Options(density=0.1))
    data = codec.encode(tensors, COMMON)
    for value in (math.nan, math.inf):
        with pytest.raises(WireError, match="values with a number that is not finite"):
            codec.decode(data[:-4] + struct.pack("<f", value), tensors.manifest(), COMMON)
    with pytest.raises(TensorMismatchError, match="codec top_k: tensor 'a' has a NaN or infinite entry"):
        codec.encode(Tensors({"a": torch.tensor([1.0, math.nan])}), COMMON)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 0.5, 0.7, 1.0])
def test_random_k_sends_values_alone_and_as_many_as_asked(density: float) -> None:
    tensors, codec = Tensors({"a": drawn(500), "b": drawn(501)}), random_k.RandomK(random_k.Options(density=density))

    found = through(codec, tensors)

    for name, tensor in found.items():
        kept = tensor != 0
        assert int(kept.sum()) == int(density * tensor.numel() + 0.5)
        assert torch.equal(tensor[kept], tensors[name][kept])
    num_kept = sum(int((tensor != 0).sum()) for tensor in found.values())
    assert len(codec.encode(tensors, COMMON)) == 8 + 16 + 4 * num_kept


def test_random_k_draws_anew_for_each_seed_and_refuses_anothers_body() -> None:
    tensors, codec = Tensors({"a": drawn(400), "b": drawn(400)}), random_k.RandomK(random_k.Options(density=0.1))
    other = Common(roles=COMMON.roles, seed=12)

    masks = [through(codec, tensors, common)[name] != 0 for common in (COMMON, other) for name in ("a", "b")]

    assert len({tuple(mask.tolist()) for mask in masks}) == 4
    with pytest.raises(WireError, match="codec random_k: the body's seal"):
        codec.decode(codec.encode(tensors, COMMON), tensors.manifest(), other)
    with pytest.raises(UnsupportedError, match="a seed that both sides share, and none was given"):
        codec.encode(tensors)


def test_random_k_draws_these_places_on_every_machine() -> None:
    tensors, codec = Tensors({"x": drawn(50)}), random_k.RandomK(random_k.Options(density=0.1))

    assert torch.nonzero(through(codec, tensors)["x"]).flatten().tolist() == PINNED


PINNED = [14, 15, 19, 20, 47]


def test_random_k_draws_every_place_alike_and_rescaled_it_is_unbiased() -> None:
    codec = random_k.RandomK(random_k.Options(density=0.25, rescale=True))
    tensors, rounds = Tensors({"x": drawn(40)}), 2000

    total = sum(through(codec, tensors, Common(seed=seed))["x"].double() for seed in range(rounds))

    spread = tensors["x"].double() * math.sqrt(3 / rounds)
    assert isinstance(total, torch.Tensor)
    assert bool(((total / rounds - tensors["x"]).abs() < 4.5 * spread).all())


def test_rescaling_never_makes_an_infinity() -> None:
    largest = torch.finfo(torch.float32).max
    codec = random_k.RandomK(random_k.Options(density=0.1, rescale=True))

    assert through(codec, Tensors({"x": torch.full((20,), -largest)}))["x"].min() == -largest


def test_a_chain_packs_what_the_first_keeps() -> None:
    tensors = Tensors({"a": drawn(1000).reshape(10, 100), "b": drawn(300), "none": torch.zeros(0, 2)})
    first, last = top_k.TopK(top_k.Options(density=0.2)), int8.Int8(int8.Options(block=16))
    chain = chained([first, last])

    whole, found = through(first, tensors), through(chain, tensors)

    assert chain.name == "top_k+int8"
    assert chain.changes_only
    for name, tensor in whole.items():
        assert torch.equal(found[name] != 0, tensor != 0)
        assert torch.allclose(found[name], tensor, rtol=0, atol=8 / 127)
    assert (found - tensors).norm() <= chain.error_bound(tensors, COMMON)
    assert len(chain.encode(tensors, COMMON)) < 0.45 * len(first.encode(tensors, COMMON))


def test_a_chain_of_three_comes_back() -> None:
    tensors = Tensors({"a": drawn(1000), "b": drawn(400, seed=1)})
    stages: list[Codec] = [random_k.RandomK(random_k.Options(density=0.5)), top_k.TopK(top_k.Options(density=0.1))]
    chain = chained([*stages, int8.Int8()])

    found = through(chain, tensors)

    assert [int((tensor != 0).sum()) for tensor in found.values()] == [50, 20]
    assert (found - tensors).norm() <= chain.error_bound(tensors, COMMON)


def test_a_codec_that_packs_everything_stands_last() -> None:
    assert chained([none.Lossless()]).name == "none"
    with pytest.raises(UnsupportedError, match=r"codec int8 stands before top_k in a chain and leaves nothing"):
        chained([int8.Int8(), top_k.TopK()])
