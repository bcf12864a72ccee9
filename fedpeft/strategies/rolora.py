"""LoRA whose factors take turns: B in one round, A in the next, each mean exact.

Chen, Guo, Ju, Dalal, Zhu, Khisti: Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA (2025),
arXiv 2502.01755: in odd rounds clients train and send B with A frozen, in even rounds A with B frozen; all clients
share the frozen factor, so sum_k p_k B_k A_k is the product of the means in every round.

Up, a round costs r d_out or r d_in floats a pair. Down, both factors are sent in every round, r (d_out + d_in) floats:
clients keep nothing between rounds and may have missed the one that changed the factor that is frozen now. Clients that
took part in every round could be sent the changed factor alone, half as much for square layers. Heads, and slots that
are no factor of a pair, train in every round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedpeft.adapters.base import Slot
from fedpeft.strategies.base import Directive, State
from fedpeft.strategies.held import Factor, require_pairs, without
from fedpeft.strategies.weighting import Averaging, WeightingOptions

__all__ = ["Options", "RoLora", "make"]


@final
class Options(WeightingOptions):
    """Options of RoLoRA."""

    first: Factor = "B"
    """The factor of odd rounds. With "A", round 1 moves only the heads where B starts at zero, as LoRA's does."""


@final
@dataclass(frozen=True, kw_only=True)
class RoLora(Averaging):
    """Federated averaging of one factor at a time."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without A/B pairs.

        Raises:
            UnsupportedError: says so.
        """
        require_pairs(slots, strategy="rolora")

    def directive(self, slots: Sequence[Slot], state: State, *, round_number: int, client: int) -> Directive:
        """Train all but the factor whose turn it is not."""
        b_trains = (round_number % 2 == 1) == (self.options.first == "B")
        return Directive(train=tuple(slot.name for slot in without(slots, "A" if b_trains else "B")))

    def period(self) -> int:
        """Return 1: all clients are asked the same."""
        return 1


def make(options: Options) -> RoLora:
    """Return RoLoRA."""
    return RoLora(options=options)
