"""Find the docstrings of installed packages by reading their source; nothing of theirs is imported or run."""

import ast
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedpeft.errors import DataError
from fedpeft.plugins import nearest

__all__ = ["docstrings", "known_names", "locate", "sources"]

_ALIASES: dict[str, tuple[str, ...]] = {
    "datasets": (),
    "flwr": ("flower",),
    "grpc": ("grpcio",),
    "huggingface_hub": ("hugging face", "hf"),
    "numpy": ("np",),
    "opacus": (),
    "pandas": ("pd",),
    "peft": (),
    "pyarrow": ("arrow", "pa", "pc", "pq"),
    "pydantic": (),
    "scipy": (),
    "sklearn": ("scikit learn", "scikit"),
    "torch": ("pytorch", "aten"),
    "transformers": ("hugging face", "hf"),
}
"""What else these packages are called in prose and code."""

_SKIPPED = frozenset({"_vendor", "_vendored", "extern", "externals", "test", "testing", "tests", "vendor"})
"""Folders of tests, and of other packages' code carried along."""


def known_names(packages: Iterable[str]) -> frozenset[str]:
    """Return every name to mask: of these packages and of those that prose often mentions beside them."""
    aliases = [alias for group in _ALIASES.values() for alias in group]
    return frozenset([*packages, *_ALIASES, *aliases])


def locate(package: str) -> Path:
    """Return the folder of an installed package.

    Raises:
        DataError: it is not installed, or is not a folder of Python files; names what is installed.
    """
    # The name has no dot, so find_spec has no parent to import.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"data.packages: {package!r} is not an installed package{nearest(package, _installed())}")
    return Path(next(iter(spec.submodule_search_locations)))


def sources(root: Path) -> list[Path]:
    """Return a package's Python files below its folder, sorted by path, tests and vendored code left out."""
    found = (path for path in root.rglob("*.py") if _SKIPPED.isdisjoint(path.relative_to(root).parts))
    return sorted(path for path in found if not path.name.startswith("test_"))


def docstrings(path: Path) -> Iterator[str]:
    """Yield the raw docstrings of a file's module, classes and functions, in order; none if it is not valid Python."""
    try:
        with warnings.catch_warnings():
            # Other people's files: their invalid escapes are no news to the caller.
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _within(tree)


def _within(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    if text := ast.get_docstring(node, clean=False):
        yield text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _within(child)


def _installed() -> list[str]:
    return sorted(name for name in importlib.metadata.packages_distributions() if not name.startswith("_"))
