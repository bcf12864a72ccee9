"""One label for a text, or for a pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fedpeft.config.base import Frozen
from fedpeft.models.head import head_modules
from fedpeft.tasks import _classify, _columns
from fedpeft.tasks._rows import Ragged, Rows, stacked
from fedpeft.tasks._text import mask, pad, require_tokenizer
from fedpeft.tasks.base import Batch, Examples, Row, Task

__all__ = ["Options", "SequenceClassification", "make"]

_CHUNK = 32


@final
class Options(Frozen):
    """How texts are cut."""

    max_length: int = Field(default=128, ge=4)
    """Tokens kept of an example, special ones included; of a pair the longer text is cut first."""


@final
@dataclass(frozen=True)
class SequenceClassification(Task):
    """Columns ``text`` and ``label``, and ``text2`` where the data has it.

    A row has ``input_ids`` and where the model reads them ``token_type_ids`` (length,), ``label`` and ``pad_id`` ();
    a batch has ``input_ids``, ``attention_mask``, ``token_type_ids`` (batch, longest) and ``labels`` (batch,).
    """

    options: Options
    kind = "sequence_classification"

    def columns(self) -> tuple[str, ...]:
        """Return what must be there; ``text2`` may be."""
        return ("text", "label")

    def encode(self, data: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Tokenise all texts at once.

        Raises:
            DataError: a column or a value is missing.
            UnsupportedError: the model reads no texts, or shorter ones than max_length.
        """
        names = ("text", "text2") if "text2" in data.column_names else ("text",)
        columns = [_columns.texts(data, name) for name in names]
        return self._rows(columns, tokenizer, label=_columns.labels(data))

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Pad on the right; a decoder finds a row's last token by the padding id, so it is the model's own."""
        batch = {"input_ids": pad(rows, "input_ids", int(rows[0]["pad_id"])), "attention_mask": mask(rows, "input_ids")}
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = pad(rows, "token_type_ids", 0)
        return {**batch, "labels": stacked(rows, "label")} if "label" in rows[0] else batch

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy of each example, shape (batch,)."""
        return _classify.losses(_logits(model, batch), batch["labels"])

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return sums of loss, weight (examples) and correct answers."""
        return _classify.sums(_logits(model, batch), batch["labels"])

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return loss (nats an example) and accuracy."""
        return _classify.means(totals)

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """Return the classifier beside the encoder."""
        return head_modules(model)

    @torch.inference_mode()
    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        inputs: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
    ) -> list[str]:
        """Return the label of each input (``text``, and ``text2`` if the first has it); the model is in eval mode.

        Raises:
            DataError: an input lacks a text, or it is none.
        """
        names = ("text", "text2") if inputs and "text2" in inputs[0] else ("text",)
        rows = self._rows([_columns.input_texts(inputs, name) for name in names], tokenizer)
        device = next(model.parameters()).device
        found: list[str] = []
        for start in range(0, len(rows), _CHUNK):
            batch = {name: value.to(device) for name, value in self.collate(rows[start : start + _CHUNK]).items()}
            found += _classify.answers(_logits(model, batch), labels)
        return found

    def _rows(self, columns: list[list[str]], tokenizer: PreTrainedTokenizerBase | None, **fixed: Tensor) -> Rows:
        tokenizer = require_tokenizer(tokenizer, self.options.max_length)
        pad_id = int(tokenizer.pad_token_id)
        tokens = _tokenise(columns, tokenizer, self.options.max_length) if columns[0] else {}
        # A decoder's tokenizer turns an empty text into nothing; the model needs one token to answer from.
        blank = {"input_ids": [pad_id], "token_type_ids": [0]}
        ragged = {name: Ragged.of([row or blank[name] for row in rows]) for name, rows in tokens.items()}
        return Rows(num_rows=len(columns[0]), ragged=ragged, fixed=fixed, shared={"pad_id": torch.tensor(pad_id)})


def _tokenise(columns: list[list[str]], tokenizer: PreTrainedTokenizerBase, length: int) -> dict[str, list[list[int]]]:
    encoded = tokenizer(*columns, truncation=True, max_length=length, padding=False, return_attention_mask=False)
    return {name: rows for name, rows in encoded.items() if name in ("input_ids", "token_type_ids")}


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return (batch, classes)."""
    logits: Tensor = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return logits


def make(options: Options) -> Task:
    """Build the task."""
    return SequenceClassification(options)
