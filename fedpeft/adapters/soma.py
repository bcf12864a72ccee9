"""LoRA that starts at the smallest singular triples of the weight, so that what the base knows best stays put.

Yun, Chae, Lee, Ro: SoMA: Singular Value Decomposed Minor Components Adaptation for Domain Generalizable
Representation Learning (2024), arXiv 2412.04077. W = U diag(S) Vt; s B0 A0 is its last r terms and the frozen weight
the rest. The early blocks may be left as they are. The weight decay of the pairs falls by a cosine over the whole
federation, decoupled as in AdamW: after each step p <- p (1 - rate * decay(t)).

The authors' code decomposes at random by default and then takes the largest triples, which is PiSSA; here they are
the smallest, exactly. They also train the targets' biases; here those stay frozen. The server decomposes once, in
float64. Averaging, floats a round and files are LoRA's (``_started``).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import nn

from fedpeft.adapters._started import Factors, Started, StartedOptions, split
from fedpeft.adapters._svd import require_rank, svd, weight_of
from fedpeft.adapters.base import Attached, Step
from fedpeft.adapters.calibration import Statistics
from fedpeft.errors import UnsupportedError

__all__ = ["Options", "Soma", "make"]


@final
class Options(StartedOptions):
    """Options of SoMA."""

    first_block: int = Field(default=0, ge=0)
    """Blocks before this one, counted from 0, are left as they are."""
    decay: float = Field(default=0.05, ge=0)
    """Weight decay of the pairs at the start, besides train.weight_decay."""
    final_decay: float = Field(default=1e-5, ge=0)
    """Weight decay of the pairs at the end."""


@final
@dataclass(frozen=True, kw_only=True)
class Soma(Started):
    """SoMA, hosted by peft's LoRA."""

    options: Options
    name = "soma"

    def targets(self, model: nn.Module) -> tuple[str, ...]:
        """Return the paths to adapt, those of early blocks left out.

        Raises:
            UnsupportedError: no block is left.
        """
        paths = super().targets(model)
        late = tuple(path for path in paths if _block(path) >= self.options.first_block)
        if not late:
            last = max(_block(path) for path in paths)
            raise UnsupportedError(f"adapter.first_block = {self.options.first_block}: expected <= {last}, the last")
        return late

    def factors(
        self, layers: Mapping[str, nn.Module], scale: float, statistics: Statistics | None
    ) -> Mapping[str, Factors]:
        """Return the last r singular triples of each weight."""
        return {path: self._last(path, layer, scale) for path, layer in layers.items()}

    @torch.no_grad()
    def after_step(self, attached: Attached, step: Step) -> None:
        """Decay the pairs by what the schedule says."""
        kept = 1 - step.learning_rate * self.decay_at(step.progress)
        for bound in attached.bound:
            if bound.slot.role != "head" and bound.parameter.requires_grad:
                bound.parameter.mul_(kept)

    def decay_at(self, progress: float) -> float:
        """Return the weight decay once this share of training is done."""
        first, last = self.options.decay, self.options.final_decay
        return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2

    def _last(self, path: str, layer: nn.Module, scale: float) -> Factors:
        rank = self.options.rank
        require_rank(rank, path, layer)
        u, s, vt = svd(weight_of(layer))
        return split(u[:, -rank:], s[-rank:], vt[-rank:], scale)


def make(options: Options) -> Soma:
    """Return SoMA."""
    return Soma(options=options)


def _block(path: str) -> int:
    """Return the number of the block a layer stands in; those outside all blocks stand after them."""
    numbers = [int(part) for part in path.split(".") if part.isdigit()]
    return numbers[-1] if numbers else 10**9
