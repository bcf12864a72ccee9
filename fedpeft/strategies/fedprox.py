"""FedAvg with a pull of each client towards what it received.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks (2020), arXiv 1812.06127:
a client minimises F_k(w) + mu / 2 ||w - w_received||^2; the server is that of FedAvg.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedpeft.strategies.base import Turn
from fedpeft.strategies.weighting import Averaging, WeightingOptions

__all__ = ["FedProx", "Options", "make"]


@final
class Options(WeightingOptions):
    """Options of FedProx."""

    mu: float = Field(default=0.01, gt=0)
    """Strength of the pull; fedavg is the strategy without it."""


@final
@dataclass(frozen=True, kw_only=True)
class FedProx(Averaging):
    """Federated averaging with a proximal term."""

    options: Options

    def penalty(self, parameters: Mapping[str, Tensor], turn: Turn) -> Tensor | None:
        """Return mu / 2 ||w - w_received||^2 over what trains and was received; its gradient: mu (w - w_received)."""
        received = turn.received
        shared = {name: parameter for name, parameter in parameters.items() if name in received}
        squares = [
            (parameter - received[name].to(parameter.device)).square().sum() for name, parameter in shared.items()
        ]
        return self.options.mu / 2 * torch.stack(squares).sum() if squares else None


def make(options: Options) -> FedProx:
    """Return FedAvg with a proximal term."""
    return FedProx(options=options)
