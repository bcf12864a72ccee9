"""What a data source gives, and how a partition deals it out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from datasets import Dataset

from fedpeft.errors import DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["Drawn", "OwnSource", "Partition", "Source", "Splits", "VirtualPartition"]

Drawn = Callable[[int], Sequence[int]]
"""Client -> its rows of the training data."""


@final
@dataclass(frozen=True, kw_only=True)
class Splits:
    """Training and held-out examples under canonical column names.

    Columns: ``text``, ``text2`` (optional), ``prompt``, ``answer``, ``image`` (float, channels x height x width),
    ``label`` (int, index into label_names), ``client`` (str, optional).
    """

    train: Dataset
    test: Dataset
    label_names: tuple[str, ...]
    """Empty where there is no label."""


class Source(ABC):
    """Where examples come from. Concrete classes are final and hold only their options."""

    @abstractmethod
    def load(self, *, seed: int) -> Splits:
        """Read the data; the same seed gives the same splits.

        Raises:
            DataError: names the file or id, what is wrong there, and what would be right.
        """


class OwnSource(Source):
    """Where each client's examples come from a place of its own, which no one else need have.

    ``load`` reads what all may see: the held-out examples, and the labels that these have; its ``train`` is empty.
    """

    @abstractmethod
    def own(self, client: int, splits: Splits, *, seed: int) -> Dataset:
        """Read one client's training examples, labelled by the names of the splits.

        Raises:
            DataError: names the file and what is wrong there.
        """


class Partition(ABC):
    """How training examples are dealt to clients. Concrete classes are final and hold only their options."""

    @property
    def num_clients(self) -> int | None:
        """How many clients have data of their own; None where it is dealt to them."""
        return None

    @abstractmethod
    def partitioner(self, train: Dataset, *, seed: int) -> "Partitioner":
        """Return flwr-datasets' partitioner for these examples, not yet given the data.

        It is given the examples shuffled, with those of their columns that hold single values (no images).

        Raises:
            DataError: the examples lack what this partition needs (a label, a client column, enough examples).
        """


class VirtualPartition(Partition):
    """Where a client is made when it is drawn, from its number alone, and any two may hold the same example.

    A device of simulations: so many clients as one likes over examples that are few.
    """

    @property
    @abstractmethod
    def population(self) -> int:
        """Clients in all."""

    @property
    @abstractmethod
    def examples_each(self) -> int:
        """Examples of each client."""

    @abstractmethod
    def drawn(self, train: Dataset, *, seed: int) -> Drawn:
        """Return what gives any client's rows; its memory is that of the examples, whatever the population.

        Raises:
            DataError: the examples lack what this partition needs.
        """

    @final
    def partitioner(self, train: Dataset, *, seed: int) -> "Partitioner":
        """Refuse.

        Raises:
            DataError: nothing is dealt.
        """
        raise DataError("a virtual partition deals nothing: each client draws its examples when it is drawn itself")
