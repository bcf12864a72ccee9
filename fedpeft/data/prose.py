"""Turn a docstring into running English: sections, code and markup removed, package names masked."""

import inspect
import re
from collections.abc import Iterable

__all__ = ["MASK", "is_english", "mask", "mask_pattern", "prose"]

MASK = "[package]"
"""Stands where a package was named."""

_SHORT_NAME = 4
"""Names up to this long stand inside ordinary words ("ray" in "array"), so they are masked from a word's start only."""

_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_UNDERLINED = re.compile(r"[^\n]+\n\s*[-=~^\"'*#]{3,}\s*(?:\n|\Z)|[-=~^*#]{3,}\s*\n")
_SECTION = re.compile(
    r"(?:args?|arguments|attributes|constraints?|examples?|inputs?|keyword args|methods|notes?|outputs?|parameters|"
    r"params|raises|references|returns?|see also|shape|type parameters|usage|warns|yields?)\s*:{1,2}\s*(?:\n|\Z)|"
    r"[:@]\w+",
    re.IGNORECASE,
)
_NOT_PROSE = re.compile(
    r"^\s*(?:>>>|\.\.(?:\s|\.|\Z)|\$ |\||\+-|[-*+•] |\d+[.)] |[:@]\w+|#|<|[\w*]+ ?\([^)]*\) ?:|[\w*]+ ?: )|"
    r"^\s+\S|\\[a-zA-Z]|\S[ ]{3,}\S|:math:|\$.+\$|Copyright|SPDX",
    re.MULTILINE,
)
_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"(?::[A-Za-z][\w+:.-]*:)?`([^`<]*)\s<[^`>]*>`_{0,2}"), r"\1"),
    (re.compile(r"(?::[A-Za-z][\w+:.-]*:)?`+[~!.]?([^`]*)`+_{0,2}"), r"\1"),
    (re.compile(r"\[[\w*#]+\]_|https?://\S+|<[^>]{1,60}>"), " "),
    (re.compile(r"\*\*([^*]+)\*\*|(?<!\w)[*_]([^*_\s][^*_]*)[*_](?!\w)"), r"\1\2"),
    (re.compile(r"[`\[\]{}|~]|\\(?=\W)"), ""),
    (re.compile(r"\s+([.,;:)])(?=\s|$)"), r"\1"),
    (re.compile(r"[:;,]+$|(?<=\w)$"), "."),
)
_PLAIN_WORD = re.compile(r"[(\"']*[A-Za-z][a-z]*(?:[-'/][A-Za-z]?[a-z]+)*[)\"'.,;:!?]*")
_FUNCTION_WORD = re.compile(
    r"an?|and|are|as|at|be|by|can|each|for|from|ha(?:s|ve)|if|in|into|is|its?|not|of|on|or|that|the|this|to|used|when|"
    r"which|will|with",
    re.IGNORECASE,
)


def prose(docstring: str) -> str:
    """Return the running text before the first section, on one line, without markup; may be empty."""
    kept: list[str] = []
    for index, paragraph in enumerate(re.split(r"\n\s*\n", _FENCED.sub("\n\n", inspect.cleandoc(docstring)))):
        title = _UNDERLINED.match(paragraph)
        if _SECTION.match(paragraph) or (title and index):
            break
        # After the first, a paragraph that starts small continues a formula or a code block ("where ...").
        continues = bool(kept) and not paragraph[:1].isupper()
        if not (title or continues or _NOT_PROSE.search(paragraph)):
            kept.append(_without_markup(paragraph))
    return " ".join(" ".join(kept).split())


def is_english(text: str) -> bool:
    """Return whether at least three words in four are plain words, one in ten a function word, and all is ASCII."""
    words = text.replace(MASK, "").split()
    plain = sum(_PLAIN_WORD.fullmatch(word) is not None for word in words)
    function_words = sum(_FUNCTION_WORD.fullmatch(word) is not None for word in words)
    return text.isascii() and bool(words) and plain >= 0.75 * len(words) and function_words >= 0.1 * len(words)


def mask_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Return what finds any of the names, in any case, with the dotted path around it.

    A space in a name stands for a space, a hyphen, an underscore or nothing.
    """
    ordered = sorted({name.lower() for name in names}, key=lambda name: (-len(name), name))
    long = "|".join(_spelled(name) for name in ordered if len(name) > _SHORT_NAME)
    short = "|".join(_spelled(name) for name in ordered if len(name) <= _SHORT_NAME)
    # An empty alternative would match everywhere; "(?!)" matches nowhere.
    # A capital after a short name starts another word ("PeftModel"); a small letter goes on with this one ("pass").
    word = rf"(?:\w*(?:{long or '(?!)'})\w*|(?:\w*_)?(?:{short or '(?!)'})(?-i:(?![a-z]))\w*)"
    return re.compile(rf"(?<!\w)(?:\w+\.)*{word}(?:\.\w+)*", re.IGNORECASE)


def mask(text: str, pattern: re.Pattern[str]) -> str:
    """Put one MASK in the place of each run of names."""
    run = rf"{re.escape(MASK)}(?:[\s/-]*{re.escape(MASK)})+"
    return re.sub(run, MASK, pattern.sub(MASK, text))


def _spelled(name: str) -> str:
    return r"[\s_-]?".join(re.escape(part) for part in re.split(r"[\s_-]", name))


def _without_markup(paragraph: str) -> str:
    for pattern, replacement in _MARKUP:
        paragraph = pattern.sub(replacement, paragraph.strip())
    return paragraph
