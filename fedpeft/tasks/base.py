"""What a task is: how examples become tensors, what is lost on each, and what is measured."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fedpeft.models.base import Kind

__all__ = ["Batch", "Examples", "Row", "Task"]

Row = Mapping[str, Tensor]
"""One encoded example: name -> tensor without a batch dimension."""
Examples = Sequence[Row]
"""All encoded examples of one client, or the held-out ones."""
Batch = dict[str, Tensor]
"""Name -> tensor with the batch dimension first."""


class Task(ABC):
    """What a model is trained to do. Concrete classes are final and hold only their options."""

    kind: Kind

    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Return the columns the data must have."""

    @abstractmethod
    def encode(self, data: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Turn raw examples into tensors, once.

        Raises:
            DataError: a column is missing; names those that are there.
        """

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> Batch:
        """Stack rows into one batch, padded to the longest."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each example, shape (batch,); no example's loss depends on another's."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return sums over the batch: ``loss``, ``weight`` (what loss is divided by), and the task's own counts."""

    @abstractmethod
    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Turn summed scores into means, for example loss and accuracy; the first after loss is the headline."""

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the modules that are new for this task and train whole; none by default."""
        return ()

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        inputs: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
    ) -> list[str]:
        """Answer raw inputs (``text``, ``text2``, ``prompt`` or ``image``) with a label or a text each."""
