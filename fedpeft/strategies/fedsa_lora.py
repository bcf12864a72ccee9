"""LoRA of which A is shared and B stays: clients agree on what to look at and differ in what they make of it.

Guo, Zeng, Wang, Fan, Wang, Qu: Selective Aggregation for Low-Rank Adaptation in Federated Learning (2024),
arXiv 2410.01463: A <- sum_k p_k A_k; client k trains both factors and starts from its own B_k and its own heads.

r d_in floats a pair up and down, in place of r (d_out + d_in). Each client keeps B, the heads and whatever else is no
A. The adapters are as many as the clients, so the number to read is ``client_metrics``: evaluate.on_clients is asked
for, and each client drawn is measured with its own B and heads after the round's training. The adapter folder and
``metrics`` are of the shared A with B and heads as the plan's seed made them, which is no client's adapter: with B = 0,
no better than the base model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedpeft.adapters.base import Slot, pairs
from fedpeft.config import Evaluate, Train
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.base import Parting, Turn
from fedpeft.strategies.held import require_pairs
from fedpeft.strategies.weighting import Averaging, WeightingOptions
from fedpeft.tensors import Spec, Tensors

__all__ = ["FedSaLora", "Options", "make"]


@final
class Options(WeightingOptions):
    """Options of FedSA-LoRA."""


@final
@dataclass(frozen=True, kw_only=True)
class FedSaLora(Averaging):
    """Federated averaging of A, with B and heads of each client's own."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without A/B pairs.

        Raises:
            UnsupportedError: says so.
        """
        require_pairs(slots, strategy="fedsa_lora", why="shares one factor of each A/B pair")

    def check_settings(self, *, train: Train, evaluate: Evaluate) -> None:
        """Refuse a run that would measure no client's adapter.

        Raises:
            UnsupportedError: says so.
        """
        if not evaluate.on_clients:
            raise UnsupportedError(
                "strategy 'fedsa_lora' gives each client an adapter of its own, and evaluate.on_clients = False would "
                "measure none of them; set evaluate.on_clients = true"
            )

    def remembers(self) -> bool:
        """Each client keeps all but A."""
        return True

    def downlink(self, slots: Sequence[Slot]) -> tuple[Spec, ...]:
        """Send A alone."""
        return _shared(slots)

    def uplink(self, slots: Sequence[Slot]) -> tuple[Spec, ...]:
        """Send A alone, of all that trains."""
        return _shared(slots)

    def begin(self, turn: Turn) -> Tensors:
        """Return the shared A with the client's own B and heads; those of the plan's seed the first time."""
        return turn.received.replace(turn.memory)

    def finish(self, turn: Turn, trained: Tensors, *, num_steps: int) -> Parting:
        """Keep all but A."""
        return Parting(adapter=trained, memory=trained.without(spec.name for spec in _shared(turn.slots)))


def make(options: Options) -> FedSaLora:
    """Return FedSA-LoRA."""
    return FedSaLora(options=options)


def _shared(slots: Sequence[Slot]) -> tuple[Spec, ...]:
    return tuple(pair.a.spec for pair in pairs(slots))
