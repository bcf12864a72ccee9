"""The folder is the registry: a plug-in is one module, its file name is its name.

Every plug-in module has ``Options`` (a frozen pydantic model) and ``make(options)``. A dotted name
loads a third party's module. A plug-in's own ImportError is never swallowed.
"""

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from fedpeft.errors import ConfigError

__all__ = ["GROUPS", "describe", "load", "names", "nearest", "taking"]

GROUPS = {
    "adapter": "fedpeft.adapters",
    "codec": "fedpeft.codecs",
    "model": "fedpeft.models",
    "partition": "fedpeft.data.partitions",
    "source": "fedpeft.data.sources",
    "strategy": "fedpeft.strategies",
    "task": "fedpeft.tasks",
}


def names(group: str) -> list[str]:
    """Return the names of a group's plug-ins, sorted, without importing any of them."""
    return sorted(path.stem for path in _folder(group).glob("*.py") if _defines_plugin(path))


def describe(group: str) -> dict[str, str]:
    """Return name -> first line of the module's docstring, without importing any of them."""
    folder = _folder(group)
    return {name: _summary(folder / f"{name}.py") for name in names(group)}


def load(group: str, name: str) -> ModuleType:
    """Import one plug-in.

    Raises:
        ConfigError: no such plug-in; the message names the nearest one that exists.
    """
    module = importlib.import_module(_locate(group, name))
    for needed in ("Options", "make"):
        if needed not in vars(module):
            raise ConfigError(
                f"{group} {name!r} ({module.__name__}) has no {needed}: a plug-in defines Options and make"
            )
    return module


def taking(group: str, option: str) -> list[str]:
    """Return the names of a group's plug-ins that have an option; one that cannot be imported has none."""
    return [name for name in names(group) if option in _options(group, name)]


def nearest(word: str, known: list[str]) -> str:
    """Return ``; did you mean 'x'?`` or the list of what exists."""
    if not known:
        return "; none is known"
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _options(group: str, name: str) -> Collection[str]:
    try:
        fields: Collection[str] = vars(load(group, name))["Options"].model_fields
    except Exception:  # noqa: BLE001 - whoever asks made a mistake of another kind; a broken plug-in says so where it is named
        return ()
    return fields


def _locate(group: str, name: str) -> str:
    if "." not in name:
        if not _is_plugin(_folder(group) / f"{name}.py"):
            raise ConfigError(f"no {group} {name!r}{_meant(group, name) or nearest(name, names(group))}")
        return f"{GROUPS[group]}.{name}"
    if not _exists(name):
        raise ConfigError(f"no {group} {name!r}: there is no such module to import")
    return name


def _is_plugin(path: Path) -> bool:
    return path.is_file() and _defines_plugin(path)


def _meant(group: str, name: str) -> str:
    """Return what a name that means another thing elsewhere stands for here, if the group's folder knows it."""
    if not (_folder(group) / "_aliases.py").exists():
        return ""
    known: dict[str, str] = vars(importlib.import_module(f"{GROUPS[group]}._aliases"))["ALIASES"]
    reason = known.get(name.lower().replace("-", "_"))
    return f": {reason}" if reason else ""


def _exists(name: str) -> bool:
    """Look a dotted name up level by level; a package that fails to import says so itself."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    packages = [".".join(parts[:end]) for end in range(1, len(parts))]
    return all(_is_package(package) for package in packages) and importlib.util.find_spec(name) is not None


def _is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def _folder(group: str) -> Path:
    return Path(__file__).parent.joinpath(*GROUPS[group].split(".")[1:])


def _defines_plugin(path: Path) -> bool:
    if path.stem.startswith("_") or path.stem == "base":
        return False
    defined = {node.name for node in _tree(path).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return {"Options", "make"} <= defined


def _summary(path: Path) -> str:
    return (ast.get_docstring(_tree(path)) or "").split("\n")[0]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
