"""Token rows: the checks before tokenising, and padding after it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from fedpeft.errors import UnsupportedError
from fedpeft.tasks.base import Row

__all__ = ["mask", "pad", "require_tokenizer"]


def require_tokenizer(tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> PreTrainedTokenizerBase:
    """Return the tokenizer if it is one and its model reads that many tokens.

    Raises:
        UnsupportedError: the model reads no texts, or shorter ones.
    """
    if tokenizer is None:
        raise UnsupportedError("the task reads texts and the model has no tokenizer; choose a text model")
    if max_length > tokenizer.model_max_length:
        raise UnsupportedError(
            f"task.max_length = {max_length}: the model reads at most {tokenizer.model_max_length} tokens"
        )
    return tokenizer


def pad(rows: Sequence[Row], name: str, value: int) -> Tensor:
    """Stack sequences to the longest, filled up on the right, shape (batch, longest), int64."""
    return pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value).long()


def mask(rows: Sequence[Row], name: str) -> Tensor:
    """Return 1 where a row has a token and 0 where it is padding, shape (batch, longest), int64."""
    lengths = torch.tensor([len(row[name]) for row in rows])
    return (torch.arange(int(lengths.max())) < lengths[:, None]).long()
