"""Label skew: each client has a fixed number of labels, one of them in turn and the others drawn.

Q. Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, 2021, arXiv:2102.02079. A label that no
client has is left out of training; with at least as many clients as labels there is none.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from datasets import Dataset
from pydantic import Field

from fedpeft.config.base import Frozen
from fedpeft.data.base import Partition
from fedpeft.data.checks import rehearse, require_column, require_enough
from fedpeft.errors import DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["Options", "make"]


@final
class Options(Frozen):
    """How many clients, and how many labels each."""

    num_clients: int = Field(default=10, ge=1)
    """Clients in all."""
    classes_per_client: int = Field(default=2, ge=1)
    """Labels each client has, exactly."""


@final
@dataclass(frozen=True, kw_only=True)
class Pathological(Partition):
    """Every client is blind to most labels."""

    options: Options

    def partitioner(self, train: Dataset, *, seed: int) -> "Partitioner":
        """Return the partitioner.

        Raises:
            DataError: no label, fewer labels than classes_per_client, or too few examples of one.
        """
        options = self.options
        require_column(train, "label", partition="pathological")
        require_enough(train, options.num_clients)
        if options.classes_per_client > (num_labels := len(set(train["label"][:]))):
            raise DataError(
                f"partition.classes_per_client = {options.classes_per_client}: the data has {num_labels} labels; "
                f"expected classes_per_client <= {num_labels}"
            )
        refusal = (
            f"partition.num_clients = {options.num_clients}, classes_per_client = {options.classes_per_client}: "
            f"more clients share a label than it has examples; lower one of the two"
        )
        rehearse(self._build(seed), train.select_columns(["label"]), refusal=refusal)
        return self._build(seed)

    def _build(self, seed: int) -> "Partitioner":
        from flwr_datasets.partitioner import PathologicalPartitioner  # slow: it draws pictures too

        return PathologicalPartitioner(
            num_partitions=self.options.num_clients,
            partition_by="label",
            num_classes_per_partition=self.options.classes_per_client,
            # "random" would leave out labels even where there are clients enough for all of them.
            class_assignment_mode="first-deterministic",
            shuffle=True,
            seed=seed,
        )


def make(options: Options) -> Partition:
    """Return the partition."""
    return Pathological(options=options)
