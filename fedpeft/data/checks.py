"""What a partition checks before it deals, and how it asks flwr-datasets whether a deal is possible."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING

from datasets import Dataset

from fedpeft.errors import DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["quiet", "rehearse", "require_column", "require_enough"]


def require_column(train: Dataset, column: str, *, partition: str) -> None:
    """Do nothing if the data has the column, without a missing value in it.

    Raises:
        DataError: names the partition, the column and those that are there.
    """
    if column not in train.column_names:
        raise DataError(
            f"partition {partition!r} needs the column {column!r}; the data has {', '.join(train.column_names)}: "
            f"choose data that has it, or partition 'iid' or 'quantity_skew'"
        )
    if (missing := list(train[column][:]).count(None)) > 0:
        raise DataError(f"partition {partition!r}: {missing} of {len(train)} examples have no {column!r}; fill them")


def require_enough(train: Dataset, num_clients: int, *, min_examples: int = 1) -> None:
    """Do nothing if there are enough examples for all clients.

    Raises:
        DataError: names both numbers.
    """
    if num_clients * min_examples > len(train):
        raise DataError(
            f"partition.num_clients = {num_clients}: at least {min_examples} each make {num_clients * min_examples} "
            f"examples, and there are {len(train)} to train on; expected num_clients <= {len(train) // min_examples}"
        )


def rehearse(partitioner: "Partitioner", train: Dataset, *, refusal: str) -> None:
    """Let a partitioner deal once, for flwr-datasets finds out only then whether it can.

    Args:
        partitioner: one that is thrown away; the same seed deals the same again.
        train: the examples; whether a deal is possible must depend on their number and labels, not on their order.
        refusal: the options with their values, and what to change.

    Raises:
        DataError: the refusal, with flwr-datasets' own reason.
    """
    partitioner.dataset = train
    try:
        with quiet():
            _ = partitioner.num_partitions
    except ValueError as error:
        raise DataError(f"{refusal} ({error})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what flwr-datasets says while it deals: a warning for each new draw, and a progress bar on stderr."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
