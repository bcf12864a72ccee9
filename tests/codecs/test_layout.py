"""The layout is safetensors' own, in the manifest's order."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load

from fedpeft.codecs.layout import read, write
from fedpeft.errors import TensorMismatchError, WireError
from fedpeft.tensors import Tensors

TENSORS = Tensors(
    {
        "z.weight": torch.arange(6.0).reshape(2, 3),
        "a": torch.tensor(-0.0),
        'ünï "quoted"': torch.zeros(0, 4),
        "m": torch.tensor([float("nan"), float("inf"), 1e-45]),
    }
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors_reads_the_same_bits(dtype: torch.dtype) -> None:
    tensors = TENSORS.to(dtype)
    found = load(write(tensors))

    assert Tensors((name, found[name]) for name in tensors) == tensors


def test_reading_keeps_order_and_bits_and_copies() -> None:
    data = write(TENSORS)

    again = read(data, TENSORS.manifest(), codec="none")

    assert again == TENSORS
    again["z.weight"].zero_()
    assert read(data, TENSORS.manifest(), codec="none") == TENSORS


def test_nothing_at_all_is_a_body_too() -> None:
    assert read(write(Tensors()), (), codec="none") == Tensors()


def test_a_transposed_tensor_is_written_row_by_row() -> None:
    turned = TENSORS.replace({"z.weight": torch.arange(6.0).reshape(3, 2).t()})

    assert read(write(turned), turned.manifest(), codec="none") == turned


def test_length_and_header_are_the_receivers() -> None:
    data, manifest = write(TENSORS), TENSORS.manifest()
    with pytest.raises(WireError, match=rf"codec x: body of {len(data) - 1} bytes, expected {len(data)} for 4 tensors"):
        read(data[:-1], manifest, codec="x")
    with pytest.raises(WireError, match=r"codec x: the body's safetensors header is not that"):
        read(data, (replace(manifest[0], name="y.weight"), *manifest[1:]), codec="x")


def test_another_dtype_is_refused_by_name() -> None:
    whole = Tensors({"steps": torch.tensor([1])})
    with pytest.raises(TensorMismatchError, match=r"tensor steps \[1\] int64: expected one of float32, bfloat16"):
        write(whole)
    with pytest.raises(TensorMismatchError, match="steps"):
        read(b"", whole.manifest(), codec="none")
