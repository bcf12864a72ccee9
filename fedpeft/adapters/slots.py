"""What an adapter says of each of its tensors: name, shape, group, role, and what averaging it means."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import final

from fedpeft.tensors import Spec

__all__ = ["Algebra", "Pair", "Slot", "pairs"]


class Algebra(Enum):
    """How a slot enters the effective weight, and so what averaging it means."""

    LINEAR = "linear"
    """Averaging is exact."""
    BILINEAR = "bilinear"
    """One factor of a pair whose product matters: LoRA's A and B."""
    PROJECTED = "projected"
    """Coordinates in a subspace that all clients share."""
    NONLINEAR = "nonlinear"
    """Plain averaging, no claim of exactness."""
    LOCAL = "local"
    """Never leaves the client."""
    FROZEN = "frozen"
    """Shared by seed or broadcast once; never trained."""


@final
@dataclass(frozen=True, kw_only=True)
class Slot:
    """What an adapter says of one of its tensors."""

    name: str
    shape: tuple[int, ...]
    algebra: Algebra
    group: str
    """The module it adapts; the two factors of a pair share one group."""
    role: str
    """``A`` (rank x d_in) and ``B`` (d_out x rank) of a pair, ``head``, or the method's own word."""
    scale: float = 1.0
    """Of a pair: the adapted weight is W + scale * B @ A."""

    @property
    def travels(self) -> bool:
        """Whether this tensor is exchanged in rounds."""
        return self.algebra not in (Algebra.LOCAL, Algebra.FROZEN)

    @property
    def spec(self) -> Spec:
        """Name, shape and dtype on the wire; slots are always float32."""
        return Spec(name=self.name, shape=self.shape, dtype="float32")


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two BILINEAR slots of one group: delta W = scale * B @ A."""

    a: Slot
    b: Slot

    @property
    def scale(self) -> float:
        """The factor before B @ A."""
        return self.b.scale


def pairs(slots: Iterable[Slot]) -> tuple[Pair, ...]:
    """Return the A/B pairs among the slots, in slot order."""
    by_group: dict[str, dict[str, Slot]] = {}
    for slot in slots:
        if slot.algebra is Algebra.BILINEAR:
            by_group.setdefault(slot.group, {})[slot.role] = slot
    return tuple(Pair(a=roles["A"], b=roles["B"]) for roles in by_group.values())
