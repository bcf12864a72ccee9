"""The Flower app bundle of one experiment: two thin apps and one file; the library itself is installed on the node."""

from pathlib import Path
from typing import Any, Literal

import tomli_w

from fedpeft import __version__
from fedpeft.config import Experiment

__all__ = ["app_source", "write_bundle"]


def write_bundle(folder: Path, experiment: Experiment) -> None:
    """Write a bundle that ``flwr run`` accepts and whose one experiment it runs when told nothing else."""
    name = f"{experiment.name}.toml"
    _write(folder / "pyproject.toml", tomli_w.dumps(_project(name)))
    _write(folder / "simulations" / name, experiment.to_toml())
    for side in ("server", "client"):
        _write(folder / side / "__init__.py", "")
        _write(folder / side / "app.py", app_source(side))


def app_source(side: Literal["server", "client"]) -> str:
    """Return the whole of ``server/app.py`` or ``client/app.py``."""
    return f'''"""The Flower {side.capitalize()}App of ``flwr run``; all of it is in the installed library."""

from pathlib import Path

from fedpeft.engines.apps import flower_{side}_app

__all__ = ["app"]

app = flower_{side}_app(Path(__file__).resolve().parents[1] / "simulations")
'''


def _project(experiment: str) -> dict[str, Any]:
    return {
        "project": {
            "name": "fedpeft",
            "version": __version__,
            "description": "fedpeft",
            "license": "Apache-2.0",
            "dependencies": ["fedpeft"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedpeft",
                    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
                    "config": {"experiment": experiment, "override": ""},
                }
            }
        },
    }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
