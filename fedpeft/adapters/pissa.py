"""LoRA that starts at the largest singular triples of the weight, and trains them on what is left of it.

Meng, Wang, Zhang: PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models (2024),
arXiv 2404.02948. W = U diag(S) Vt; s B0 A0 is its first r terms, each side with the root of the singular values, and
the frozen weight is the rest. The paper's scale s is one, alpha = r; another only moves the balance of step sizes.

The server decomposes once, in float64 (see ``_svd``). Averaging, floats a round and files are LoRA's (``_started``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import nn

from fedpeft.adapters._started import Factors, Started, StartedOptions, split
from fedpeft.adapters._svd import require_rank, svd, weight_of
from fedpeft.adapters.calibration import Statistics

__all__ = ["Options", "Pissa", "make"]


@final
class Options(StartedOptions):
    """Options of PiSSA."""


@final
@dataclass(frozen=True, kw_only=True)
class Pissa(Started):
    """PiSSA, hosted by peft's LoRA."""

    name = "pissa"

    def factors(
        self, layers: Mapping[str, nn.Module], scale: float, statistics: Statistics | None
    ) -> Mapping[str, Factors]:
        """Return the first r singular triples of each weight."""
        return {path: self._first(path, layer, scale) for path, layer in layers.items()}

    def _first(self, path: str, layer: nn.Module, scale: float) -> Factors:
        rank = self.options.rank
        require_rank(rank, path, layer)
        u, s, vt = svd(weight_of(layer))
        return split(u[:, :rank], s[:rank], vt[:rank], scale)


def make(options: Options) -> Pissa:
    """Return PiSSA."""
    return Pissa(options=options)
