"""The two factors of A/B pairs, for strategies that train one and hold the other still.

When all clients share one factor, the mean of the other is exact: sum_k p_k (B_k A) = (sum_k p_k B_k) A.
"""

from collections.abc import Sequence
from typing import Literal

from fedpeft.adapters.base import Slot, pairs
from fedpeft.errors import UnsupportedError

__all__ = ["Factor", "require_pairs", "without"]

Factor = Literal["A", "B"]
"""A is the factor next to the input, B the one next to the output."""


def require_pairs(
    slots: Sequence[Slot], *, strategy: str, why: str = "holds one factor of each A/B pair still"
) -> None:
    """Refuse an adapter that has no A/B pair; ``why`` is what the strategy does with them.

    Raises:
        UnsupportedError: names the strategy and what the adapter has instead.
    """
    if not pairs(slots):
        roles = ", ".join(sorted({slot.role for slot in slots if slot.travels})) or "none"
        raise UnsupportedError(
            f"strategy {strategy!r} {why}, and this adapter has no pairs "
            f"(its roles: {roles}); use an adapter such as 'lora'"
        )


def without(slots: Sequence[Slot], factor: Factor) -> tuple[Slot, ...]:
    """Return what is exchanged less one factor of every pair: the other factors, heads and all else, in slot order."""
    held = {(pair.a if factor == "A" else pair.b).name for pair in pairs(slots)}
    return tuple(slot for slot in slots if slot.travels and slot.name not in held)
