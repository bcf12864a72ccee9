"""A task on examples that bring the states of a model's lower blocks along: the model goes on from there."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, final

from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from fedpeft.models.base import Kind
from fedpeft.tasks.base import Batch, Examples, Row, Task

__all__ = ["STATES", "Entered", "Given"]

STATES = "lower_states"
"""Of a row: (length, width), what enters the first block that is computed; of a batch: (batch, longest, width)."""


class Entered(Protocol):
    """What a model does inside the block: lower blocks pass these states on, or are computed where there are none."""

    def __call__(self, states: Tensor | None) -> AbstractContextManager[None]:
        """Be entered for one call of the model."""


@final
@dataclass(frozen=True, eq=False)
class Given(Task):
    """Another task, on rows with states or without; batches are padded as that task pads them."""

    inner: Task
    entered: Entered

    @property
    def kind(self) -> Kind:  # type: ignore[override]  # a class variable of the tasks themselves
        """What the inner task asks of a model."""
        return self.inner.kind

    def columns(self) -> tuple[str, ...]:
        """Return the inner task's."""
        return self.inner.columns()

    def encode(self, data: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Return the inner task's rows, which have no states."""
        return self.inner.encode(data, tokenizer)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Return the inner task's batch, with states, zero where it is padded, if all rows have them."""
        batch = self.inner.collate(rows)
        if all(STATES in row for row in rows):
            batch[STATES] = pad_sequence([row[STATES] for row in rows], batch_first=True)
        return batch

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each example, shape (batch,)."""
        with self.entered(batch.get(STATES)):
            return self.inner.losses(model, _rest(batch))

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return the inner task's sums."""
        with self.entered(batch.get(STATES)):
            return self.inner.score(model, _rest(batch))

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return the inner task's."""
        return self.inner.metrics(totals)

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """Return the inner task's."""
        return self.inner.head(model)

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        inputs: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
    ) -> list[str]:
        """Answer as the inner task does, with the whole model."""
        return self.inner.predict(model, tokenizer, inputs, labels)


def _rest(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != STATES}
