"""An experiment whose every plug-in is one throw-away module, addressed by its dotted name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpeft.config import Experiment, load

PART = '''"""A part with one option of each kind."""

from typing import Literal

from pydantic import Field, field_validator

from fedpeft.config import Frozen


class Inner(Frozen):
    depth: int = Field(default=1, ge=1, le=4)


class Options(Frozen):
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    targets: tuple[str, ...] = ("query", "value")
    betas: tuple[float, float] = (0.9, 0.999)
    bias: Literal["none", "all"] = "none"
    fraction: float | None = Field(default=None, gt=0, lt=1)
    fast: bool = False
    label: str = Field(default="x", min_length=1)
    inner: Inner = Inner()

    @field_validator("rank")
    @classmethod
    def _not_unlucky(cls, rank: int) -> int:
        if rank == 13:
            raise ValueError("13 brings bad luck; choose another")
        return rank


def make(options: Options) -> Options:
    return options
'''
NEEDY = """from fedpeft.config import Frozen


class Options(Frozen):
    path: str


def make(options): ...
"""
GROUPS = ("model", "data", "partition", "task", "adapter", "strategy")
BASE = "".join(f'[{group}]\nname = "acme_config.part"\n' for group in GROUPS)

Make = Callable[..., Experiment]


@pytest.fixture(autouse=True)
def _acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "acme_config"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", "part": PART, "needy": NEEDY}.items():
        (package / f"{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.startswith("acme_config")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(package.parent))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Load an experiment: tables to add to the base file, then overrides."""

    def load_text(text: str = "", *overrides: str, base: str = BASE, name: str = "toy") -> Any:
        path = tmp_path / f"{name}.toml"
        head, _, tables = text.partition("[")
        path.write_text(f"{head}\n{base}{'[' * bool(tables)}{tables}", encoding="utf-8")
        return load(path, overrides)

    return load_text
