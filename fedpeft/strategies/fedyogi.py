"""Yogi on the server: like fedadam, but the scale moves slowly when updates shrink.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization (2020),
arXiv 2003.00295: m <- beta1 m + (1 - beta1) D, v <- v - (1 - beta2) D^2 sign(v - D^2),
w <- w + learning_rate m / (sqrt(v) + tau), with D the mean delta, m = 0 and v = tau^2 before round 1, and no bias
correction. m and v are two adapters in float64, kept from round to round.
"""

from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedpeft.strategies.moments import Adaptive, AdaptiveOptions

__all__ = ["Options", "make"]


@final
class Options(AdaptiveOptions):
    """Options of FedYogi."""

    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the second moment."""


def make(options: Options) -> Adaptive:
    """Return Yogi on the server."""
    beta2 = options.beta2

    def next_variance(variance: Tensor, square: Tensor) -> Tensor:
        return variance - (1 - beta2) * square * torch.sign(variance - square)

    return Adaptive(options=options, next_variance=next_variance)
