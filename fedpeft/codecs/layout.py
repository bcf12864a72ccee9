"""The safetensors layout, written in the manifest's order.

Its header is a function of the manifest alone: a receiver compares bytes with the ones it expects and parses nothing.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from fedpeft.errors import TensorMismatchError, WireError
from fedpeft.tensors import Spec, Tensors, raw

__all__ = ["narrowed", "read", "require_finite", "require_float32", "write"]

_ALIGNMENT = 8
_CODES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write(tensors: Tensors) -> bytes:
    """Return a safetensors file of float32, bfloat16 or float16 tensors, in their order.

    Raises:
        TensorMismatchError: another dtype; names the tensor.
    """
    return b"".join([_header(tensors.manifest()), *map(raw, tensors.values())])


def read(data: bytes, manifest: Sequence[Spec], *, codec: str) -> Tensors:
    """Return copies of exactly the manifest's tensors, bit for bit.

    Raises:
        WireError: the length or the header is not this manifest's.
        TensorMismatchError: the manifest has a dtype that is never written.
    """
    header = _header(manifest)
    ends = list(accumulate((_num_bytes(spec) for spec in manifest), initial=len(header)))
    if len(data) != ends[-1]:
        raise WireError(f"codec {codec}: body of {len(data)} bytes, expected {ends[-1]} for {len(manifest)} tensors")
    if not data.startswith(header):
        raise WireError(f"codec {codec}: the body's safetensors header is not that of the expected manifest")
    parts = (memoryview(data)[start:end] for start, end in pairwise(ends))
    return Tensors((spec.name, _tensor(part, spec)) for spec, part in zip(manifest, parts, strict=True))


def require_float32(manifest: Iterable[Spec], *, codec: str) -> None:
    """Refuse a manifest of other dtypes: what travels is always float32.

    Raises:
        TensorMismatchError: names the first that is not.
    """
    for spec in manifest:
        if spec.dtype != "float32":
            raise TensorMismatchError(f"codec {codec}: tensor {spec}, expected float32")


def require_finite(tensors: Tensors, *, codec: str) -> None:
    """Refuse NaN and infinity where a codec has no code for them.

    Raises:
        TensorMismatchError: names the first tensor with such an entry.
    """
    tensors.require_finite(where=f"codec {codec}")


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to nearest even, but a finite value never to infinity; the shape stays."""
    rounded = tensor.to(dtype)
    largest = torch.finfo(dtype).max
    return torch.where(torch.isfinite(tensor), rounded.clamp(-largest, largest), rounded)


def _header(manifest: Sequence[Spec]) -> bytes:
    """Return the length (8 bytes, little endian) and the JSON text, padded with spaces to a multiple of 8."""
    ends = list(accumulate((_num_bytes(spec) for spec in manifest), initial=0))
    entries = {
        spec.name: {"dtype": _code(spec)[0], "shape": spec.shape, "data_offsets": (start, end)}
        for spec, (start, end) in zip(manifest, pairwise(ends), strict=True)
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _code(spec: Spec) -> tuple[str, int]:
    if spec.dtype not in _CODES:
        raise TensorMismatchError(f"tensor {spec}: expected one of {', '.join(_CODES)}")
    return _CODES[spec.dtype]


def _num_bytes(spec: Spec) -> int:
    return spec.num_elements * _code(spec)[1]


def _tensor(data: memoryview, spec: Spec) -> Tensor:
    flat = torch.tensor(np.frombuffer(data, np.uint8))
    return flat.view(_DTYPES[spec.dtype]).reshape(spec.shape)
