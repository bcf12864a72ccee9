"""Look at a machine of a federation before it runs, and say what is wrong with what mends it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import yaml

from fedpeft.deploy.checks import CHECKS
from fedpeft.deploy.machine import Fault, Machine, Surroundings
from fedpeft.errors import InputError

__all__ = ["Examined", "examine", "machines"]

_COMPOSE = "docker-compose.yml"


@final
@dataclass(frozen=True)
class Examined:
    """One check of one machine."""

    machine: Path
    check: str
    faults: tuple[Fault, ...]


def machines(folder: Path, around: Surroundings) -> list[Machine]:
    """Return the machine of a folder; of a whole deployment the server's and each client's.

    Raises:
        InputError: no folder of a deployment, or its compose file cannot be read.
    """
    if (folder / "federation.toml").is_file():
        return [_machine(each, around) for each in sorted(folder.iterdir()) if (each / "secrets").is_dir()]
    return [_machine(folder, around)]


def examine(folder: Path, around: Surroundings, *, say: Callable[[Examined], None] = lambda _: None) -> list[Examined]:
    """Do every check of every machine of a folder, telling each as it is done.

    Raises:
        InputError: as for machines.
    """
    found = []
    for machine in machines(folder, around):
        for name, check in CHECKS.items():
            found.append(Examined(machine.folder, name, tuple(check(machine))))
            say(found[-1])
    return found


def _machine(folder: Path, around: Surroundings) -> Machine:
    path = folder / _COMPOSE
    if not path.is_file() or not (folder / "secrets").is_dir():
        raise InputError(
            f"{folder}: no machine of a federation: expected {_COMPOSE} and secrets/, "
            "as fedpeft deploy init writes them"
        )
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Machine(
            folder=folder, services=dict(table["services"]), networks=dict(table.get("networks") or {}), around=around
        )
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a compose file: {error}") from error
