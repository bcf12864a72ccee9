"""Stands in for every plug-in, so that reports are tested apart from real parts."""

from pydantic import Field

from fedpeft.config import Frozen

__all__ = ["Options", "make"]


class Options(Frozen):
    """Nothing of meaning."""

    size: int = 3
    rate: float = 0.1
    note: str | None = None
    nested: dict[str, int] = Field(default_factory=dict)


def make(options: Options) -> Options:
    """Return the options themselves."""
    return options
