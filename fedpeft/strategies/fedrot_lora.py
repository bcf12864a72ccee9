"""LoRA whose clients turn their factors towards the global ones before they are averaged.

Zhang, Kim, Cha, Vikalo: FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA (2026), arXiv 2602.23638.
(B Q)(Q^T A) = B A for every orthogonal Q, so clients that agree in the product may disagree in the factors, and the
mean of factors suffers. After training, client k sends (Q^T A_k, B_k Q): the same product, up to rounding. In odd
rounds Q fits A, min ||Q^T A_k - A||, in even rounds B, min ||B_k Q - B||, where A and B are the factors as received.
The server takes the plain weighted mean.

With M = A_k A^T, or B_k^T B, the fit is Q = U V^T of the SVD of M. It is softened here by a pull to the identity: the
SVD is of (1 - strength) I + strength sqrt(r) M / ||M||_F, two matrices of equal norm; where M = 0, as with a B that
starts at zero, nothing is turned. Floats up and down are those of fedavg, r (d_out + d_in) a pair. The total streams;
clients keep nothing. Heads, and slots that are no factor of a pair, travel as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedpeft.adapters.base import Pair, Slot, pairs
from fedpeft.strategies.base import Parting, Turn
from fedpeft.strategies.held import require_pairs
from fedpeft.strategies.weighting import Averaging, WeightingOptions
from fedpeft.tensors import Tensors

__all__ = ["FedRotLora", "Options", "make"]


@final
class Options(WeightingOptions):
    """Options of FedRot-LoRA."""

    strength: float = Field(default=0.5, gt=0, le=1)
    """How far factors turn: 1 is the whole fit, and fedavg is the strategy without it."""


@final
@dataclass(frozen=True, kw_only=True)
class FedRotLora(Averaging):
    """Federated averaging of factors that were turned towards the global ones."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without A/B pairs.

        Raises:
            UnsupportedError: says so.
        """
        require_pairs(slots, strategy="fedrot_lora", why="turns the factors of each A/B pair")

    def finish(self, turn: Turn, trained: Tensors, *, num_steps: int) -> Parting:
        """Send the trained adapter with each pair turned towards what was received."""
        turned: dict[str, Tensor] = {}
        for pair in pairs(turn.slots):
            turned |= self._turned(pair, trained, turn)
        return Parting(adapter=trained.replace(turned))

    def _turned(self, pair: Pair, trained: Tensors, turn: Turn) -> dict[str, Tensor]:
        """Return Q^T A (r, d_in) and B Q (d_out, r), worked out in float64."""
        (a, b), (towards_a, towards_b) = (_factors(pair, tensors) for tensors in (trained, turn.received))
        cross = a @ towards_a.T if turn.round_number % 2 else b.T @ towards_b
        rotation = _rotation(cross, self.options.strength)
        return {pair.a.name: (rotation.T @ a).to(torch.float32), pair.b.name: (b @ rotation).to(torch.float32)}


def make(options: Options) -> FedRotLora:
    """Return FedRot-LoRA."""
    return FedRotLora(options=options)


def _factors(pair: Pair, tensors: Tensors) -> tuple[Tensor, Tensor]:
    return tensors[pair.a.name].to(torch.float64), tensors[pair.b.name].to(torch.float64)


def _rotation(cross: Tensor, strength: float) -> Tensor:
    """Return the orthogonal Q (r, r) of the largest trace of Q^T ((1 - strength) I + strength M), M of I's norm."""
    identity, norm = torch.eye(len(cross), dtype=cross.dtype), float(torch.linalg.matrix_norm(cross))
    if not norm:
        return identity
    u, _, vh = torch.linalg.svd((1 - strength) * identity + strength * math.sqrt(len(cross)) / norm * cross)
    rotation: Tensor = u @ vh
    return rotation
