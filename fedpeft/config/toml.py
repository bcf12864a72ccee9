"""A TOML file as one table, with overrides from the command line; what its keys mean is not known here."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedpeft.errors import ConfigError

__all__ = ["table_of", "text_of"]

_BARE = re.compile(r"""[^\s\[\]{}"'=,][^\[\]{}"'\n\r]*""")
"""A word that needs no quotes on the command line: a name, a path, a hub id."""


def text_of(path: Path) -> str:
    """Return a file's text.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def table_of(text: str, overrides: Iterable[str], *, where: str) -> dict[str, Any]:
    """Return the table of a file's text, with ``a.b=c`` overrides applied in turn.

    Raises:
        ConfigError: the text is no TOML, or an override does not fit.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from error
    for override in overrides:
        _apply(table, override)
    return table


def _apply(table: dict[str, Any], override: str) -> None:
    path, _, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not text.strip() or not all(keys):
        raise ConfigError(f"override {override!r}: expected key=value or table.key=value")
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override {override!r}: {key!r} is not a table")
    table[keys[-1]] = _value(override, text.strip())


def _value(override: str, text: str) -> Any:
    """Read an override's value as TOML, and a bare word as a string."""
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if _BARE.fullmatch(text):
            return text
        raise ConfigError(f"override {override!r}: the value is not valid TOML: {error}") from error
    if set(read) != {"value"}:
        raise ConfigError(f"override {override!r}: expected one value on one line")
    return read["value"]
