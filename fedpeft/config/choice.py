"""A plug-in by name, as an experiment holds it."""

import json
from dataclasses import dataclass
from typing import Any, final

from fedpeft import plugins
from fedpeft.config.base import Frozen

__all__ = ["Choice", "Choices"]


@final
@dataclass(frozen=True, kw_only=True)
class Choice:
    """A plug-in by name, with its checked options."""

    group: str
    name: str
    options: Frozen

    def table(self) -> dict[str, Any]:
        """Return the table as it stands in the file, defaults included."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def build(self) -> Any:
        """Import the plug-in and make it."""
        return vars(plugins.load(self.group, self.name))["make"](self.options)


@final
@dataclass(frozen=True)
class Choices:
    """Plug-ins of one kind, one after the other: a table in the file, or an array of tables."""

    stages: tuple[Choice, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The plug-ins' names, in order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def words(self) -> tuple[str, ...]:
        """Each plug-in's name, and as canonical JSON its options that are not the default, in order."""
        told = [(stage.name, stage.options.model_dump(mode="json", exclude_defaults=True)) for stage in self.stages]
        return tuple(f"{name} {json.dumps(options, sort_keys=True)}" if options else name for name, options in told)

    def table(self) -> Any:
        """Return the one table, or the array of several."""
        tables = [stage.table() for stage in self.stages]
        return tables if len(tables) > 1 else tables[0]

    def build(self) -> list[Any]:
        """Import the plug-ins and make them."""
        return [stage.build() for stage in self.stages]
