"""FedAvg with a pull of each client towards what it received.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks (2020), arXiv 1812.06127:
a client minimises F_k(w) + mu / 2 ||w - w_received||^2; the server is that of FedAvg.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedpeft.adapters.base import Slot
from fedpeft.config.base import Frozen
from fedpeft.strategies.base import ClientUpdate, State, Strategy, WeightedSum
from fedpeft.strategies.weighting import Weighting, accumulate_weighted, apply_mean
from fedpeft.tensors import Tensors

__all__ = ["FedProx", "Options", "make"]


@final
class Options(Frozen):
    """Options of FedProx."""

    mu: float = Field(default=0.01, gt=0)
    """Strength of the pull; fedavg is the strategy without it."""
    weighting: Weighting = "examples"
    """What a client counts for: its number of examples, or one."""


@final
@dataclass(frozen=True, kw_only=True)
class FedProx(Strategy[WeightedSum]):
    """Federated averaging with a proximal term."""

    options: Options

    def start(self) -> WeightedSum:
        """Return an empty sum."""
        return WeightedSum()

    def accumulate(self, total: WeightedSum, update: ClientUpdate) -> WeightedSum:
        """Add weight * delta."""
        return accumulate_weighted(total, update, weighting=self.options.weighting)

    def apply(self, slots: Sequence[Slot], state: State, total: WeightedSum) -> State:
        """Move the global adapter by the mean delta."""
        return apply_mean(state, total)

    def penalty(self, parameters: Mapping[str, Tensor], received: Tensors) -> Tensor | None:
        """Return mu / 2 ||w - w_received||^2 over what trains and was received; its gradient: mu (w - w_received)."""
        shared = {name: parameter for name, parameter in parameters.items() if name in received}
        squares = [
            (parameter - received[name].to(parameter.device)).square().sum() for name, parameter in shared.items()
        ]
        return self.options.mu / 2 * torch.stack(squares).sum() if squares else None


def make(options: Options) -> FedProx:
    """Return FedAvg with a proximal term."""
    return FedProx(options=options)
