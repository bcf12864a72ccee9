"""Pairs of passages: the first sentence of a text with its own continuation, or with that of another text."""

import re
from collections.abc import Sequence

from fedpeft.data.splits import permutation
from fedpeft.errors import DataError

__all__ = ["LABELS", "distinct", "joined", "passages"]

LABELS = ("different", "same")
"""Of a pair: the second passage continues another text, or this one."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def passages(text: str, *, min_words: int) -> tuple[str, str] | None:
    """Return a text's first sentence and the rest; None where either is shorter than min_words."""
    first, *rest = _SENTENCE_END.split(text, maxsplit=1)
    long_enough = bool(rest) and all(len(part.split()) >= min_words for part in (first, *rest))
    return (first, rest[0]) if long_enough else None


def distinct(texts: Sequence[str], *, min_words: int) -> list[int]:
    """Return the places of texts neither of whose passages stands in an earlier text, whatever its case."""
    kept, seen = [], set[str]()
    for index, text in enumerate(texts):
        both = {part.lower() for part in passages(text, min_words=min_words) or ()}
        if both and not both & seen:
            kept.append(index)
            seen |= both
    return kept


def joined(parts: Sequence[tuple[str, str]], groups: Sequence[str], *, seed: int) -> list[tuple[str, str, int]]:
    """Return a pair and its label for each text: half of each group keep their continuation, half exchange theirs.

    Each passage stands in one pair; of distinct ones none is seen in training and held out.

    Raises:
        DataError: a group is too small to exchange anything.
    """
    pairs = [(first, second, LABELS.index("same")) for first, second in parts]
    for group in dict.fromkeys(groups):
        own = [index for index, name in enumerate(groups) if name == group]
        order = permutation(len(own), "pairs", group, seed=seed)[: len(own) // 2]
        if len(order) < 2:
            raise DataError(f"{group!r} has {len(own)} texts of two passages; expected at least 4 to make pairs of")
        exchanged = [own[index] for index in order]
        for index, other in zip(exchanged, [*exchanged[1:], exchanged[0]], strict=True):
            pairs[index] = (parts[index][0], parts[other][1], LABELS.index("different"))
    return pairs
