"""Rounding by hand: to nearest, ties to even, never a finite value to infinity."""

import math

import pytest
import torch

from fedpeft.codecs.bfloat16 import Bfloat16
from fedpeft.codecs.none import Lossless
from fedpeft.tensors import Tensors

LARGEST = torch.finfo(torch.float32).max
LARGEST_PACKED = (2 - 2**-7) * 2.0**127


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 1.0),
        (1 + 2**-8, 1.0),
        (1 + 2**-8 + 2**-23, 1 + 2**-7),
        (1 + 3 * 2**-8, 1 + 2**-6),
        (-(1 + 2**-8), -1.0),
        (-0.0, -0.0),
        (LARGEST, LARGEST_PACKED),
        (-LARGEST, -LARGEST_PACKED),
        (2.0**-133, 2.0**-133),
        (2.0**-134, 0.0),
        (2.0**-149, 0.0),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (math.nan, math.nan),
    ],
)
def test_a_value_arrives_rounded_to_nearest_even(value: float, expected: float) -> None:
    codec, tensors = Bfloat16(), Tensors({"x": torch.tensor(value)})

    arrived = codec.decode(codec.encode(tensors), tensors.manifest())

    assert arrived == Tensors({"x": torch.tensor(expected)})


def test_it_takes_half_the_bytes_of_none() -> None:
    tensors = Tensors({"x": torch.randn(1000, generator=torch.Generator().manual_seed(0))})

    assert len(Lossless().encode(tensors)) - len(Bfloat16().encode(tensors)) == pytest.approx(2000, abs=8)


def test_the_bound_is_nearly_reached() -> None:
    tensors = Tensors({"x": torch.full((100,), 1 + 2**-8)})
    codec = Bfloat16()

    error = (codec.decode(codec.encode(tensors), tensors.manifest()) - tensors).norm()

    assert 0.99 * codec.error_bound(tensors) < error <= codec.error_bound(tensors)
