"""Cores between two fixed bases, averaged exactly: what travels does not grow with the model's width.

Singhal, Ponkshe, Vartak, Varshney, Vepakomma: Fed-SB: A Silver Bullet for Extreme Communication Efficiency and
Performance in (Private) Federated LoRA Fine-Tuning (2025), arXiv 2502.15436: R <- sum_k p_k R_k, where the bases B and
A are the same on every client, so that sum_k p_k B R_k A = B R A.

Up and down r^2 floats a layer, whatever the layer's sides and the number of clients; the bases come once, with the
plan. Heads are averaged as well. The paper takes its bases from gradients of examples; adapter 'lora_sb' takes them
from the frozen weights and looks at none. It streams: its memory does not grow with the number of clients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedpeft.adapters.base import Algebra, Slot
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.weighting import Averaging, WeightingOptions

__all__ = ["FedSb", "Options", "make"]


@final
class Options(WeightingOptions):
    """Options of Fed-SB."""


@final
@dataclass(frozen=True, kw_only=True)
class FedSb(Averaging):
    """Federated averaging of cores."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without cores.

        Raises:
            UnsupportedError: says so.
        """
        if not any(slot.role == "core" and slot.algebra is Algebra.LINEAR for slot in slots):
            roles = ", ".join(sorted({slot.role for slot in slots if slot.travels})) or "none"
            raise UnsupportedError(
                f"strategy 'fed_sb' averages cores between fixed bases, and this adapter has no linear core "
                f"(its roles: {roles}); use adapter 'lora_sb'"
            )


def make(options: Options) -> FedSb:
    """Return Fed-SB."""
    return FedSb(options=options)
