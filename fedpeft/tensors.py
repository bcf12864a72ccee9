"""Named tensors with a small, strict algebra: what an adapter is, what an update is, what a strategy keeps.

Names, shapes and dtypes that differ raise and name the first difference; nothing is ever broadcast.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import final

import torch
from torch import Tensor

from fedpeft.errors import TensorMismatchError

__all__ = ["Spec", "Tensors", "manifest_hash", "raw", "require_manifest"]


def raw(tensor: Tensor) -> memoryview:
    """Return the bits of a tensor, row by row; a copy only where memory is laid out otherwise."""
    flat = tensor.detach().cpu().contiguous().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


@final
@dataclass(frozen=True, kw_only=True)
class Spec:
    """Name, shape and dtype of one tensor: what both sides must agree on before a byte is read."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_elements(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {self.dtype}"


def manifest_hash(specs: Iterable[Spec]) -> str:
    """Return the sha256 (hex) of a manifest; order counts."""
    return _manifest_hash(tuple(specs))


@lru_cache(maxsize=64)
def _manifest_hash(specs: tuple[Spec, ...]) -> str:
    """Every header of a round has one of a few manifests, so it is hashed once and not for each client."""
    plain = [{"name": spec.name, "shape": spec.shape, "dtype": spec.dtype} for spec in specs]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def require_manifest(have: Iterable[Spec], want: Iterable[Spec], *, where: str) -> None:
    """Refuse a manifest that is not exactly the wanted one, order included.

    Raises:
        TensorMismatchError: names the first difference and the place.
    """
    for index, (got, expected) in enumerate(zip_longest(have, want)):
        if got != expected:
            raise TensorMismatchError(
                f"{where}: tensor {index} is {got or 'missing'}, expected {expected or 'nothing'}"
            )


@final
class Tensors(Mapping[str, Tensor]):
    """An ordered, read-only map name -> tensor. The tensors are treated as values: never written in place."""

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] = ()) -> None:
        pairs = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
        self._tensors: dict[str, Tensor] = dict(pairs)
        if len(self._tensors) != len(pairs):
            raise TensorMismatchError(f"a name occurs twice among {[name for name, _ in pairs]}")

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Return whether names, order, shapes, dtypes and every bit agree; NaN equals itself, 0.0 is not -0.0."""
        return isinstance(other, Tensors) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"Tensors({', '.join(str(spec) for spec in self.manifest())})"

    def __add__(self, other: "Tensors") -> "Tensors":
        return self._zip(other, torch.add)

    def __sub__(self, other: "Tensors") -> "Tensors":
        return self._zip(other, torch.sub)

    def __mul__(self, factor: float) -> "Tensors":
        return self.map(lambda tensor: tensor * factor)

    def dot(self, other: "Tensors") -> float:
        """Return the inner product over all entries, summed in float64."""
        self.require(other.manifest(), where="dot")
        return float(sum(_flat(self[name]) @ _flat(other[name]) for name in self))

    def norm(self) -> float:
        """Return the L2 norm over all entries together, summed in float64."""
        return math.sqrt(self.dot(self))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tensors":
        """Apply a function to each tensor."""
        return Tensors((name, function(tensor)) for name, tensor in self.items())

    def to(self, dtype: torch.dtype) -> "Tensors":
        """Cast every tensor."""
        return self.map(lambda tensor: tensor.to(dtype))

    def zeros(self) -> "Tensors":
        """Return zeros of the same manifest."""
        return self.map(torch.zeros_like)

    def select(self, names: Iterable[str]) -> "Tensors":
        """Return the named tensors, in this map's order.

        Raises:
            TensorMismatchError: a name is not here.
        """
        wanted = set(names)
        if missing := sorted(wanted - set(self)):
            raise TensorMismatchError(f"no tensor {missing[0]!r} among {len(self)}")
        return Tensors((name, tensor) for name, tensor in self.items() if name in wanted)

    def without(self, names: Iterable[str]) -> "Tensors":
        """Return the tensors that are not named, in this map's order."""
        left_out = set(names)
        return Tensors((name, tensor) for name, tensor in self.items() if name not in left_out)

    def joined(self, other: "Tensors") -> "Tensors":
        """Return this map's tensors, then the other's.

        Raises:
            TensorMismatchError: a name is in both.
        """
        return Tensors([*self.items(), *other.items()])

    def replace(self, other: Mapping[str, Tensor]) -> "Tensors":
        """Return this map with some tensors exchanged for others of the same shape and dtype."""
        merged = Tensors({**self._tensors, **other})
        merged.require(self.manifest(), where="replace")
        return merged

    def manifest(self) -> tuple[Spec, ...]:
        """Return name, shape and dtype of each tensor, in order."""
        return tuple(
            Spec(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
            for name, tensor in self.items()
        )

    def require(self, manifest: Iterable[Spec], *, where: str) -> "Tensors":
        """Return self if it has exactly this manifest.

        Raises:
            TensorMismatchError: names the first difference and the place.
        """
        require_manifest(self.manifest(), manifest, where=where)
        return self

    def require_finite(self, *, where: str) -> "Tensors":
        """Return self if no entry is NaN or infinite.

        Raises:
            TensorMismatchError: names the first tensor with such an entry.
        """
        for name, tensor in self.items():
            if not bool(torch.isfinite(tensor).all()):
                raise TensorMismatchError(f"{where}: tensor {name!r} has a NaN or infinite entry")
        return self

    def digest(self) -> str:
        """Return the sha256 (hex) over manifest and bits."""
        sha = hashlib.sha256(manifest_hash(self.manifest()).encode())
        for tensor in self.values():
            sha.update(raw(tensor))
        return sha.hexdigest()

    @property
    def num_elements(self) -> int:
        """Number of scalars in all."""
        return sum(tensor.numel() for tensor in self.values())

    def _zip(self, other: "Tensors", function: Callable[[Tensor, Tensor], Tensor]) -> "Tensors":
        other.require(self.manifest(), where="tensor algebra")
        return Tensors((name, function(tensor, other[name])) for name, tensor in self.items())


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).to(torch.float64)
