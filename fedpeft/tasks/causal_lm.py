"""Continue a text: an answer to a prompt, or plain text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, final

import torch
from datasets import Dataset
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from fedpeft.config.base import Frozen
from fedpeft.tasks import _columns, _spans
from fedpeft.tasks._greedy import continuations
from fedpeft.tasks._rows import Ragged, Rows, stacked
from fedpeft.tasks._text import mask, pad, require_tokenizer
from fedpeft.tasks.base import Batch, Examples, Row, Task

__all__ = ["CausalLM", "Options", "make"]

_IGNORED = -100


@final
class Options(Frozen):
    """What is predicted from what."""

    text: Literal["prompt_answer", "plain", "packed"] = "prompt_answer"
    """Predict the column answer from the column prompt; or the column text, each an example of its own; or the texts
    joined and cut into blocks of max_length (example-level privacy then protects a block, not a text)."""
    max_length: int = Field(default=128, ge=8)
    """Tokens kept of an example; a prompt loses its beginning, an answer or a text its end."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Most tokens that predict writes; they and the prompt share max_length."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_new_tokens > self.max_length - 2:
            raise ValueError(
                f"max_new_tokens = {self.max_new_tokens}: expected <= max_length - 2 = {self.max_length - 2}"
            )
        return self


@final
@dataclass(frozen=True)
class CausalLM(Task):
    """Columns ``prompt`` and ``answer``, or ``text``.

    A row has ``input_ids`` (length,), ``num_given`` () and ``pad_id`` (); a batch has ``input_ids``, ``attention_mask``
    and ``labels`` (batch, longest), labels being -100 where nothing is predicted.
    """

    options: Options
    kind = "causal_lm"

    def columns(self) -> tuple[str, ...]:
        """Return what must be there."""
        return ("prompt", "answer") if self.options.text == "prompt_answer" else ("text",)

    def encode(self, data: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Tokenise all texts at once, prompt and answer apart, as predict will see the prompt alone.

        Raises:
            DataError: a column or a value is missing.
            UnsupportedError: the model reads no texts, or shorter ones, or cannot end one.
        """
        tokenizer = require_tokenizer(tokenizer, self.options.max_length)
        columns = [_spans.token_ids(tokenizer, _columns.texts(data, name)) for name in self.columns()]
        spans = self._spans(columns, tokenizer)
        return Rows(
            num_rows=len(spans),
            ragged={"input_ids": Ragged.of([tokens for tokens, _ in spans])},
            fixed={"num_given": torch.tensor([given for _, given in spans], dtype=torch.int64)},
            shared={"pad_id": torch.tensor(int(tokenizer.pad_token_id))},
        )

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Pad on the right and mark what is predicted."""
        tokens, present = pad(rows, "input_ids", int(rows[0]["pad_id"])), mask(rows, "input_ids")
        predicted = torch.arange(tokens.shape[1]) >= stacked(rows, "num_given")[:, None]
        labels = tokens.masked_fill(~predicted | (present == 0), _IGNORED)
        return {"input_ids": tokens, "attention_mask": present, "labels": labels}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each example's mean over its predicted tokens, shape (batch,)."""
        targets = batch["labels"][:, 1:]
        nats = _token_losses(_logits(model, batch), targets)
        return nats.sum(dim=1) / (targets != _IGNORED).sum(dim=1).clamp(min=1)

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return sums over predicted tokens: loss, weight (their number) and correct ones."""
        logits, targets = _logits(model, batch), batch["labels"][:, 1:]
        return {
            "loss": _token_losses(logits, targets).double().sum().item(),
            "weight": float((targets != _IGNORED).sum().item()),
            "correct": float((logits.argmax(dim=-1) == targets).sum().item()),
        }

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return loss (nats a token), perplexity and the share of tokens that were the most likely ones."""
        loss = totals["loss"] / totals["weight"]
        perplexity = math.inf if loss > 700 else math.exp(loss)
        return {"loss": loss, "perplexity": perplexity, "token_accuracy": totals["correct"] / totals["weight"]}

    @torch.inference_mode()
    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        inputs: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
    ) -> list[str]:
        """Return the greedy continuation of each ``prompt`` (or ``text``); the model is in eval mode."""
        tokenizer = require_tokenizer(tokenizer, self.options.max_length)
        prompts = _spans.token_ids(tokenizer, _columns.input_texts(inputs, self.columns()[0]))
        room = self.options.max_length - self.options.max_new_tokens
        given = [_spans.fitted(prompt, [], _spans.opening(tokenizer, prompt), room)[0] for prompt in prompts]
        return list(continuations(model, tokenizer, given, self.options.max_new_tokens))

    def _spans(self, columns: list[list[list[int]]], tokenizer: PreTrainedTokenizerBase) -> list[_spans.Span]:
        length = self.options.max_length
        ended = [[*answer, _spans.end_token(tokenizer)] for answer in columns[-1]]
        if self.options.text == "packed":
            return list(_spans.packed(ended, _spans.opening(tokenizer, []), length))
        prompts = columns[0] if len(columns) > 1 else [[]] * len(ended)
        pairs = zip(prompts, ended, strict=True)
        return [_spans.fitted(prompt, answer, _spans.opening(tokenizer, prompt), length) for prompt, answer in pairs]


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of the next token at all positions but the last, (batch, longest - 1, vocabulary), float32."""
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1].float()


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (batch, longest - 1), 0 where nothing is predicted."""
    return cross_entropy(logits.transpose(1, 2), targets, ignore_index=_IGNORED, reduction="none")


def make(options: Options) -> Task:
    """Build the task."""
    return CausalLM(options)
