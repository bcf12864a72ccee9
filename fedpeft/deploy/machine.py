"""A machine of a federation as its folder says, and what is found wrong with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

__all__ = ["Fault", "Machine", "Surroundings", "environment", "value"]

_FLOWER = ("flower-superlink", "flower-supernode", "flower-superexec")


@final
@dataclass(frozen=True)
class Fault:
    """What is wrong, and what mends it."""

    words: str
    remedy: str


@final
@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is asked beyond the folder; what is None is not asked."""

    host: str | None = None
    """The server's name as others see it: none but the Fleet port may answer there."""
    clock: str | None = None
    """A URL whose Date header is the time; the server's own, seen from a client."""
    trainer: str | None = None
    """Address of the trainer, where it is not in a container."""


@final
@dataclass(frozen=True, kw_only=True)
class Machine:
    """A folder of one machine, as ``fedpeft deploy init`` writes them."""

    folder: Path
    services: Mapping[str, Mapping[str, Any]]
    """Of its compose file."""
    networks: Mapping[str, Any]
    around: Surroundings = Surroundings()

    @property
    def secrets(self) -> Path:
        """Where its keys lie."""
        return self.folder / "secrets"

    def flower(self, *programs: str) -> Iterator[tuple[str, list[str], Mapping[str, Any]]]:
        """Yield name, command and all of each service that runs one of Flower's programs."""
        for name, service in self.services.items():
            command = [str(word) for word in service.get("command", ())]
            if command and command[0] in (programs or _FLOWER):
                yield name, command, service

    def trainers(self) -> Iterator[tuple[str, list[str]]]:
        """Yield name and command of each trainer."""
        for name, service in self.services.items():
            command = [str(word) for word in service.get("command", ())]
            if command[:2] == ["fedpeft", "trainer"]:
                yield name, command


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    """Return what a service has in its environment, written as a table or as NAME=VALUE lines."""
    given = service.get("environment") or {}
    pairs = given.items() if isinstance(given, Mapping) else (str(line).partition("=")[::2] for line in given)
    return {str(name): str(text) for name, text in pairs}


def value(command: list[str], flag: str) -> str | None:
    """Return a flag's value, written --flag=value or --flag value; None where it is not given."""
    for place, word in enumerate(command):
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
        if word == flag:
            return command[place + 1] if place + 1 < len(command) else ""
    return None
