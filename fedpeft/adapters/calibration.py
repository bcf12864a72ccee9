"""What a plan may know of data: sums over examples, gathered before the federation, on public data.

Sums of parts add up to the sum of the whole, so it does not matter how the examples were batched or shared out. Each
states by how much one example can change it: None is no bound, and such sums are taken of public data only, which is
all that experiments offer today.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from fedpeft.tensors import Tensors

__all__ = ["Calibrator", "Losses", "Statistics"]

Batch = dict[str, Tensor]
Losses = Callable[[nn.Module, Batch], Tensor]
"""Model and batch to the loss of each example, shape (batch,)."""


@final
@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Sums over examples."""

    sums: Tensors
    num_examples: int
    sensitivity: float | None = None
    """By how much, in L2 norm over all sums jointly, one example more or less can change them; None: no bound."""

    def __add__(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both sets of examples.

        Raises:
            TensorMismatchError: they are not sums of the same things.
        """
        bounds = (self.sensitivity, other.sensitivity)
        return Statistics(
            sums=self.sums + other.sums,
            num_examples=self.num_examples + other.num_examples,
            sensitivity=None if None in bounds else max(bound for bound in bounds if bound is not None),
        )

    def mean(self) -> Tensors:
        """Return the sums divided by the number of examples."""
        return self.sums * (1 / self.num_examples)


class Calibrator(ABC):
    """Looks at examples on behalf of a method's plan."""

    @abstractmethod
    def observe(self, model: nn.Module, batch: Batch, losses: Losses) -> Statistics:
        """Return the statistics of one batch of any size; the model is as loaded, in eval mode, and is left so."""
