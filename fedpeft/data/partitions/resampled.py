"""Virtual clients, as many as one likes: each draws its examples from all of them when it is drawn itself.

With ``alpha`` each has a mix of labels of its own, from a symmetric Dirichlet distribution (T.-M. H. Hsu, H. Qi,
M. Brown, Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019,
arXiv:1909.06335). A device of simulations: any two clients may hold the same example.
"""

from dataclasses import dataclass
from typing import final

import numpy
from datasets import Dataset
from pydantic import Field

from fedpeft.config.base import Frozen
from fedpeft.data.base import Drawn, VirtualPartition
from fedpeft.data.checks import require_column
from fedpeft.errors import DataError
from fedpeft.seeds import derive

__all__ = ["Options", "make"]


@final
class Options(Frozen):
    """How many clients, how much each holds, and how skewed."""

    num_clients: int = Field(ge=1, le=100_000_000)
    """Clients in all; they take no memory."""
    num_examples: int = Field(default=32, ge=1)
    """Examples of each client, no two the same; with alpha they repeat where a label has no more."""
    alpha: float | None = Field(default=None, gt=0)
    """Concentration of each client's mix of labels: small for few labels each; unset: the mix of the whole."""


@final
@dataclass(frozen=True, kw_only=True)
class Resampled(VirtualPartition):
    """Client k's examples follow from k and the seed."""

    options: Options

    @property
    def population(self) -> int:
        """Clients in all."""
        return self.options.num_clients

    @property
    def examples_each(self) -> int:
        """Examples of each client."""
        return self.options.num_examples

    def drawn(self, train: Dataset, *, seed: int) -> Drawn:
        """Return what gives a client's rows.

        Raises:
            DataError: fewer examples than one client is to hold, or no label where one is needed.
        """
        number, alpha = self.options.num_examples, self.options.alpha
        if number > len(train):
            raise DataError(
                f"partition.num_examples = {number}: there are {len(train)} to train on; expected at most so many"
            )
        if alpha is None:
            return lambda client: _generator(seed, client).choice(len(train), number, replace=False).tolist()
        require_column(train, "label", partition="resampled")
        labels = numpy.asarray(train["label"][:], dtype=numpy.int64)
        groups = [numpy.flatnonzero(labels == label) for label in numpy.unique(labels)]
        return lambda client: _skewed(_generator(seed, client), groups, alpha, number)


def _generator(seed: int, client: int) -> numpy.random.Generator:
    return numpy.random.default_rng(derive(seed, "client", client))


def _skewed(
    generator: numpy.random.Generator, groups: list[numpy.typing.NDArray[numpy.int64]], alpha: float, number: int
) -> list[int]:
    """Draw a mix of labels, how many of each, and these."""
    counts = generator.multinomial(number, generator.dirichlet([alpha] * len(groups)))
    drawn = [
        generator.choice(group, count, replace=bool(count > len(group)))
        for group, count in zip(groups, counts, strict=True)
    ]
    rows: list[int] = numpy.concatenate(drawn).tolist()
    return rows


def make(options: Options) -> VirtualPartition:
    """Return the partition."""
    return Resampled(options=options)
