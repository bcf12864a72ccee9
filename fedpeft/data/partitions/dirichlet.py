"""Label skew: each label is spread over the clients in proportions drawn from a symmetric Dirichlet distribution.

M. Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, 2019, arXiv:1905.12022, without the
balancing of its code. Each draw in which a client falls short of min_examples is thrown away, ten times at most.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from datasets import Dataset
from pydantic import Field

from fedpeft.config.base import Frozen
from fedpeft.data.base import Partition
from fedpeft.data.checks import rehearse, require_column, require_enough

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["Options", "make"]


@final
class Options(Frozen):
    """How many clients, and how skewed."""

    num_clients: int = Field(default=10, ge=1)
    """Clients in all."""
    alpha: float = Field(default=0.5, gt=0)
    """Concentration: small values give each client few labels, large ones the mix of the whole."""
    min_examples: int = Field(default=1, ge=1)
    """Draw anew while a client has fewer."""


@final
@dataclass(frozen=True, kw_only=True)
class Dirichlet(Partition):
    """Clients differ in their labels and, for small alpha, in their sizes."""

    options: Options

    def partitioner(self, train: Dataset, *, seed: int) -> "Partitioner":
        """Return the partitioner.

        Raises:
            DataError: no label, too few examples, or no draw gives every client enough.
        """
        options = self.options
        require_column(train, "label", partition="dirichlet")
        require_enough(train, options.num_clients, min_examples=options.min_examples)
        refusal = (
            f"partition.alpha = {options.alpha}, num_clients = {options.num_clients}: in no draw does every client get "
            f"min_examples = {options.min_examples} of {len(train)}; raise alpha, or lower num_clients or min_examples"
        )
        rehearse(self._build(seed), train.select_columns(["label"]), refusal=refusal)
        return self._build(seed)

    def _build(self, seed: int) -> "Partitioner":
        from flwr_datasets.partitioner import DirichletPartitioner  # slow: it draws pictures too

        return DirichletPartitioner(
            num_partitions=self.options.num_clients,
            partition_by="label",
            alpha=self.options.alpha,
            min_partition_size=self.options.min_examples,
            self_balancing=False,
            shuffle=True,
            seed=seed,
        )


def make(options: Options) -> Partition:
    """Return the partition."""
    return Dirichlet(options=options)
