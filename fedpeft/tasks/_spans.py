"""Token spans for a causal language model: what is given, what is to be predicted, and how both are cut."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from fedpeft.errors import UnsupportedError

__all__ = ["Span", "end_token", "fitted", "opening", "packed", "token_ids"]

Span = tuple[list[int], int]
"""Tokens, and how many of them at the front are given and not predicted (at least one)."""


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, no special ones added."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a text.

    Raises:
        UnsupportedError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UnsupportedError("the model's tokenizer has no end-of-text token; causal_lm needs one to stop at")
    return int(tokenizer.eos_token_id)


def opening(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> list[int]:
    """Return what a prompt opens with: the begin-of-text token where the tokenizer itself puts one, else nothing.

    Before an empty prompt the end-of-text token serves, for the first token too needs one to be predicted from.
    """
    first = tokenizer.bos_token_id
    if first is not None and tokenizer("")["input_ids"][:1] == [first]:
        return [int(first)]
    return [] if prompt else [end_token(tokenizer)]


def fitted(prompt: list[int], answer: list[int], start: list[int], max_length: int) -> Span:
    """Cut one example to max_length: the answer may always fill half, and the prompt loses its beginning.

    start and prompt together have at least one token.
    """
    room = max_length - len(start)
    answer = answer[: max(room - len(prompt), room // 2)]
    given = start + prompt[max(0, len(prompt) - (room - len(answer))) :]
    return given + answer, len(given)


def packed(texts: Sequence[list[int]], start: list[int], max_length: int) -> Iterator[Span]:
    """Join texts and cut the stream into blocks of max_length; every token of it is predicted exactly once."""
    stream = [token for text in texts for token in text]
    room = max_length - len(start)
    for first in range(0, len(stream), room):
        yield start + stream[first : first + room], len(start)
