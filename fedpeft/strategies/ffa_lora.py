"""LoRA with A frozen at its seed: only B travels, and its mean is exact.

Sun, Li, Li, Ding: Improving LoRA in Privacy-preserving Federated Learning (2024), arXiv 2403.12313: B <- sum_k p_k B_k
with A = A0 on every client, so that sum_k p_k B_k A0 = B A0.

A comes from the plan's seed and crosses the network in neither direction: r d_out floats a pair up and down, in place
of r (d_out + d_in). Heads, and slots that are no factor of a pair, train and travel as usual. The update of a layer
stays in the row space of A0, so the rank matters more than for lora.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedpeft.adapters.base import Slot
from fedpeft.strategies.base import Directive, State
from fedpeft.strategies.held import require_pairs, without
from fedpeft.strategies.weighting import Averaging, WeightingOptions
from fedpeft.tensors import Spec

__all__ = ["FfaLora", "Options", "make"]


@final
class Options(WeightingOptions):
    """Options of FFA-LoRA."""


@final
@dataclass(frozen=True, kw_only=True)
class FfaLora(Averaging):
    """Federated averaging of B, with A frozen."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without A/B pairs.

        Raises:
            UnsupportedError: says so.
        """
        require_pairs(slots, strategy="ffa_lora")

    def directive(self, slots: Sequence[Slot], state: State, *, round_number: int, client: int) -> Directive:
        """Train all but A."""
        return Directive(train=tuple(slot.name for slot in without(slots, "A")))

    def period(self) -> int:
        """Return 1: all clients are asked the same."""
        return 1

    def downlink(self, slots: Sequence[Slot]) -> tuple[Spec, ...]:
        """Send all but A, which each client made from the plan's seed."""
        return tuple(slot.spec for slot in without(slots, "A"))


def make(options: Options) -> FfaLora:
    """Return FFA-LoRA."""
    return FfaLora(options=options)
