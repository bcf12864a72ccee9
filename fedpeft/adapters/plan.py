"""Decisions only the server may take, computed once, hashed, and handed to every client before the first round."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

from safetensors.torch import load, save
from torch import Tensor

from fedpeft.errors import WireError
from fedpeft.tensors import Tensors

__all__ = ["Plan"]

_LENGTH = 8


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """Categorical choices as plain JSON values, and factors, masks or codes as tensors, kept in order of name.

    A reader must take no order from the values: objects come back with their keys sorted.
    """

    adapter: str
    values: dict[str, Any]
    tensors: Tensors = field(default_factory=Tensors)

    def __post_init__(self) -> None:
        """Sort the tensors, contiguous, so that hash, bytes and products are alike on both ends of the wire."""
        contiguous = self.tensors.map(Tensor.contiguous)
        object.__setattr__(self, "tensors", Tensors(sorted(contiguous.items())))

    @cached_property
    def hash(self) -> str:
        """The sha256 (hex) of values and tensors."""
        return hashlib.sha256(self.header() + self.tensors.digest().encode()).hexdigest()

    @property
    def paths(self) -> list[str]:
        """The layers that are adapted, by the keys under which an adapter's values name them."""
        return [path for key in ("ranks", "targets", "outputs", "inputs") for path in self.values.get(key, ())]

    def header(self) -> bytes:
        """Return adapter and values as canonical JSON."""
        return json.dumps({"adapter": self.adapter, "values": self.values}, sort_keys=True, allow_nan=False).encode()

    def to_bytes(self) -> bytes:
        """Return length of the header (8 bytes, little endian), header, tensors as safetensors."""
        header = self.header()
        return len(header).to_bytes(_LENGTH, "little") + header + save(dict(self.tensors))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Plan":
        """Read what to_bytes wrote.

        Raises:
            WireError: the bytes are no plan.
        """
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        try:
            header = json.loads(data[_LENGTH:end])
            return cls(adapter=header["adapter"], values=header["values"], tensors=Tensors(load(data[end:])))
        except Exception as error:
            raise WireError(f"plan of {len(data)} bytes cannot be read: {type(error).__name__}") from error
