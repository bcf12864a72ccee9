"""Server optimizers over the mean delta as pseudo-gradient: moments that last over rounds, and the adaptive step.

Moments are float64: squares of float32 entries neither overflow nor vanish there, and a checkpoint keeps them to the
bit. They live in State.memory as ``momentum/NAME`` and ``variance/NAME``, one or two adapters in size whatever the
cohort. A slot that no client trained in a round keeps its moments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedpeft.adapters.base import Slot
from fedpeft.strategies.base import State, WeightedSum
from fedpeft.strategies.weighting import Averaging, WeightingOptions, mean_delta, moved
from fedpeft.tensors import Tensors

__all__ = ["MOMENTUM", "VARIANCE", "Adaptive", "AdaptiveOptions", "moment", "remember", "zeros"]

MOMENTUM, VARIANCE = "momentum", "variance"


class AdaptiveOptions(WeightingOptions):
    """What the adaptive methods share."""

    learning_rate: float = Field(default=0.01, gt=0)
    """The server's; an entry whose deltas keep their sign and size moves by about this much a round."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    tau: float = Field(default=1e-3, gt=0)
    """How little the step adapts: deltas well below it are scaled alike."""


@final
@dataclass(frozen=True, kw_only=True)
class Adaptive(Averaging):
    """A server optimizer whose steps are scaled by a second moment; the methods differ in how that moment moves."""

    options: AdaptiveOptions
    next_variance: Callable[[Tensor, Tensor], Tensor]
    """Second moment and squared mean delta -> second moment."""

    def init(self, slots: Sequence[Slot], adapter: Tensors) -> State:
        """Start with m = 0 and v = tau^2, the least that the paper admits."""
        momentum = zeros(adapter)
        variance = momentum.map(lambda tensor: torch.full_like(tensor, self.options.tau**2))
        return State(adapter=adapter, memory=remember({MOMENTUM: momentum, VARIANCE: variance}))

    def apply(self, slots: Sequence[Slot], state: State, total: WeightedSum) -> State:
        """Return the state after m <- b1 m + (1 - b1) D, v <- next_variance(v, D^2), w <- w + rate m / (sqrt v + tau).

        Raises:
            TensorMismatchError: the mean is not of this adapter; names the first difference.
        """
        mean, given = mean_delta(total), self.options
        old = {kind: moment(state, kind) for kind in (MOMENTUM, VARIANCE)}
        momentum = old[MOMENTUM].select(mean) * given.beta1 + mean * (1 - given.beta1)
        trained = old[VARIANCE].select(mean).items()
        variance = Tensors((name, self.next_variance(tensor, mean[name].square())) for name, tensor in trained)
        step = Tensors(
            (name, given.learning_rate * tensor / (variance[name].sqrt() + given.tau))
            for name, tensor in momentum.items()
        )
        moments = {MOMENTUM: old[MOMENTUM].replace(momentum), VARIANCE: old[VARIANCE].replace(variance)}
        return State(adapter=moved(state.adapter, step), memory=remember(moments))


def zeros(adapter: Tensors) -> Tensors:
    """Return zeros like the adapter, float64."""
    return adapter.to(torch.float64).zeros()


def moment(state: State, kind: str) -> Tensors:
    """Return one moment under the names of the slots."""
    prefix = f"{kind}/"
    kept = state.memory.items()
    return Tensors((name.removeprefix(prefix), tensor) for name, tensor in kept if name.startswith(prefix))


def remember(moments: Mapping[str, Tensors]) -> Tensors:
    """Return the memory that holds these moments by kind."""
    return Tensors((f"{kind}/{name}", tensor) for kind, tensors in moments.items() for name, tensor in tensors.items())
