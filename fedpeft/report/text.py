"""Numbers and tables as people read them: the same on the terminal, on the card and on the page."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["as_bytes", "as_number", "as_seconds", "flatten", "one_line"]


def as_bytes(count: float) -> str:
    """Return for example ``1.5 MB``; decimal units, as networks are priced."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def as_seconds(seconds: float) -> str:
    """Return for example ``3.2 s``, ``4 min 05 s`` or ``2 h 07 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def as_number(value: float) -> str:
    """Return four significant digits, or all of a large number's."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def one_line(text: str) -> str:
    """Return the text without line breaks or control codes, whoever wrote it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of nested tables; what is unset is left out."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value
