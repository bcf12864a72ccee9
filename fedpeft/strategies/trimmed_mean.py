"""Mean of each coordinate without its largest and smallest values.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates (2018),
arXiv 1803.01498. The paper trims a fraction of the values at each end; here it is a number, so that none is
rounded away.

It needs every update of a round at once: K adapters of memory. Clients count alike. Updates that are NaN or infinite
count as extreme; where more than num_trimmed reach one end of a coordinate the round is refused. On adapters with pairs
each factor is trimmed, not the product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedpeft.adapters.base import Slot
from fedpeft.config.base import Frozen
from fedpeft.strategies.base import Stack, State
from fedpeft.strategies.stacking import Stacking, coordinatewise, require_enough
from fedpeft.strategies.weighting import moved

__all__ = ["Options", "TrimmedMean", "make"]


@final
class Options(Frozen):
    """Options of the trimmed mean."""

    num_trimmed: int = Field(default=1, ge=1)
    """Values left out at each end of every coordinate; so many clients may send anything."""


@final
@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Stacking):
    """The coordinate-wise trimmed mean of the updates."""

    options: Options

    def least_updates(self) -> int:
        """Return enough that something is left in the middle."""
        return 2 * self.options.num_trimmed + 1

    def apply(self, slots: Sequence[Slot], state: State, total: Stack) -> State:
        """Move each coordinate by the mean of the deltas that are left.

        Raises:
            RunError: nothing would be left, or more than num_trimmed updates are not finite.
        """
        num = self.options.num_trimmed
        require_enough(total.updates, at_least=self.least_updates(), why=f"strategy.num_trimmed = {num}")
        step = coordinatewise(total.updates, self._mean_inside, withstands=num, name="trimmed_mean")
        return State(adapter=moved(state.adapter, step), memory=state.memory)

    def _mean_inside(self, ascending: Tensor) -> Tensor:
        num = self.options.num_trimmed
        return ascending[num : len(ascending) - num].to(torch.float64).mean(dim=0)


def make(options: Options) -> TrimmedMean:
    """Return the coordinate-wise trimmed mean."""
    return TrimmedMean(options=options)
