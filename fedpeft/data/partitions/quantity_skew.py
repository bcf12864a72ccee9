"""Size skew: client i of 1..n gets a share in proportion to i, to its square, or to its exponential.

Labels are mixed as in the whole. Sizes are rounded down, and what is left goes to the last client.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

from datasets import Dataset
from pydantic import Field

from fedpeft.config.base import Frozen
from fedpeft.data.base import Partition
from fedpeft.data.checks import rehearse, require_enough

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["Options", "make"]


@final
class Options(Frozen):
    """How many clients, and how unequal."""

    num_clients: int = Field(default=10, ge=1)
    """Clients in all."""
    law: Literal["linear", "square", "exponential"] = "linear"
    """How a client's size grows with its number."""


@final
@dataclass(frozen=True, kw_only=True)
class QuantitySkew(Partition):
    """The first client has least, the last most."""

    options: Options

    def partitioner(self, train: Dataset, *, seed: int) -> "Partitioner":
        """Return the partitioner; it cuts the order it is given, so the seed is that of the shuffle before it.

        Raises:
            DataError: the first client would have no example.
        """
        options = self.options
        require_enough(train, options.num_clients)
        refusal = (
            f"partition.law = {options.law!r}, num_clients = {options.num_clients}: the smallest client would get none "
            f"of {len(train)} examples; lower num_clients or use a flatter law ('linear')"
        )
        rehearse(self._build(), train, refusal=refusal)
        return self._build()

    def _build(self) -> "Partitioner":
        from flwr_datasets.partitioner import ExponentialPartitioner, LinearPartitioner, SquarePartitioner

        laws = {"linear": LinearPartitioner, "square": SquarePartitioner, "exponential": ExponentialPartitioner}
        return laws[self.options.law](num_partitions=self.options.num_clients)


def make(options: Options) -> Partition:
    """Return the partition."""
    return QuantitySkew(options=options)
