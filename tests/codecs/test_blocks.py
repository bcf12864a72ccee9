"""int8 and int4 by a slow oracle, block by block; float16's rounding by hand."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.codecs.base import Codec
from fedpeft.codecs.float16 import Float16
from fedpeft.codecs.int4 import Int4
from fedpeft.codecs.int4 import Options as Options4
from fedpeft.codecs.int8 import Int8
from fedpeft.codecs.int8 import Options as Options8
from fedpeft.errors import TensorMismatchError, WireError
from fedpeft.tensors import Tensors

CODECS = {
    "int8": (lambda block: Int8(Options8(block=block)), 127),
    "int4": (lambda block: Int4(Options4(block=block)), 7),
}
both = pytest.mark.parametrize("name", CODECS)


def through(codec: Codec, tensors: Tensors) -> Tensors:
    """Encode and decode."""
    return codec.decode(codec.encode(tensors), tensors.manifest())


@both
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_each_entry_is_the_nearest_multiple_of_its_blocks_scale(name: str, data: st.DataObject) -> None:
    make, levels = CODECS[name]
    block = data.draw(st.integers(1, 9))
    values = data.draw(st.lists(st.floats(-1e6, 1e6, width=32), max_size=30))

    found = through(make(block), Tensors({"x": torch.tensor(values)}))["x"].tolist()

    for start in range(0, len(values), block):
        part = values[start : start + block]
        scale = float(np.float32(max(map(abs, part)) / levels))
        for value, got in zip(part, found[start : start + block], strict=True):
            assert abs(got - value) <= 0.50001 * scale + 2.0**-140
            assert scale == 0 or abs(got / scale - round(got / scale)) < 1e-4


@both
def test_many_blocks_of_many_tensors_take_what_they_should(name: str) -> None:
    make, levels = CODECS[name]
    tensors = Tensors({"x": torch.randn(300_007), "none": torch.zeros(0, 3), "y": torch.randn(5, 7)})
    codec = make(64)

    found, size = through(codec, tensors), len(codec.encode(tensors))

    assert size == 16 + 4 * (math.ceil(300_007 / 64) + 1) + sum(
        math.ceil(n * (1 if levels > 7 else 0.5)) for n in (300_007, 35)
    )
    assert (found - tensors).norm() <= codec.error_bound(tensors) < 2.2 * (found - tensors).norm()


@both
def test_the_largest_of_a_block_arrives_as_it_was_and_zeros_stay(name: str) -> None:
    make, levels = CODECS[name]
    found = through(make(4), Tensors({"x": torch.tensor([0.0, float(levels), 1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.25])}))
    assert found["x"].tolist() == [0, levels, 1, -2, 0, 0, 0, 0, 0.25]


@both
def test_extremes_stay_finite(name: str) -> None:
    make, _ = CODECS[name]
    largest = torch.finfo(torch.float32).max
    found = through(make(2), Tensors({"x": torch.tensor([largest, -largest, 2.0**-149, 0.0])}))["x"]
    assert torch.isfinite(found).all()
    assert found[0].item() == pytest.approx(largest, rel=1e-6)


@both
@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0, -0.0, 3e38])
def test_poisoned_scales_are_refused(name: str, scale: float) -> None:
    codec, tensors = CODECS[name][0](8), Tensors({"x": torch.ones(9)})
    data = codec.encode(tensors)
    with pytest.raises(WireError, match=f"codec {name}: scales"):
        codec.decode(data[:16] + struct.pack("<f", scale) + data[20:], tensors.manifest())


def test_numbers_that_are_never_sent_are_refused() -> None:
    tensors = Tensors({"x": torch.ones(3)})
    for codec, bad in ((Int8(), b"\x80\x7f\x7f"), (Int4(), b"\xf0\x8f"), (Int4(), b"\xff\x9f")):
        data = codec.encode(tensors)
        with pytest.raises(WireError, match=f"codec {codec.name}: numbers of 'x'"):
            codec.decode(data[: -len(bad)] + bad, tensors.manifest())
    with pytest.raises(WireError, match="1 bytes too many"):
        Int8().decode(Int8().encode(tensors) + b"\0", tensors.manifest())
    with pytest.raises(WireError, match="numbers of 3 bytes, and 2 are left"):
        Int8().decode(Int8().encode(tensors)[:-1], tensors.manifest())


@pytest.mark.parametrize("codec", [Int8(), Int4(), Float16()], ids=lambda codec: codec.name)
def test_what_is_not_finite_is_not_sent(codec: Codec) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(TensorMismatchError, match=f"codec {codec.name}: tensor 'x' has a NaN or infinite entry"):
            codec.encode(Tensors({"x": torch.tensor([1.0, value])}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + 2**-11, 1.0),
        (1 + 2**-11 + 2**-23, 1 + 2**-10),
        (1 + 3 * 2**-11, 1 + 2**-9),
        (65504.0, 65504.0),
        (65519.0, 65504.0),
        (-1e30, -65504.0),
        (2.0**-24, 2.0**-24),
        (2.0**-25, 0.0),
        (-0.0, -0.0),
    ],
)
def test_float16_rounds_to_nearest_even(value: float, expected: float) -> None:
    assert through(Float16(), Tensors({"x": torch.tensor(value)})) == Tensors({"x": torch.tensor(expected)})


def test_float16_refuses_a_poisoned_body() -> None:
    tensors = Tensors({"x": torch.ones(4)})
    data = Float16().encode(tensors)
    for bits in (b"\x00\x7c", b"\x00\xfc", b"\x01\x7e"):
        with pytest.raises(WireError, match="codec float16: tensor 'x' has a NaN or infinite entry"):
            Float16().decode(data[:-2] + bits, tensors.manifest())
