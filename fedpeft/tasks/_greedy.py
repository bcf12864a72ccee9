"""Greedy continuation of many token rows at once."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fedpeft.tasks._spans import end_token

__all__ = ["continuations"]

_CHUNK = 16


def continuations(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, given: Sequence[list[int]], max_new_tokens: int
) -> Iterator[str]:
    """Yield the text written after each row, the row itself left out; the model is in eval mode."""
    device = next(model.parameters()).device
    for first in range(0, len(given), _CHUNK):
        tokens, present = _left_padded(given[first : first + _CHUNK], int(tokenizer.pad_token_id))
        written = cast(Any, model).generate(
            input_ids=tokens.to(device),
            attention_mask=present.to(device),
            do_sample=False,
            use_cache=True,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=end_token(tokenizer),
        )
        yield from tokenizer.batch_decode(written[:, tokens.shape[1] :], skip_special_tokens=True)


def _left_padded(rows: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return tokens and their mask, each (batch, longest): on the left, so that all rows continue at one place."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, (torch.arange(longest) >= longest - lengths[:, None]).long()
