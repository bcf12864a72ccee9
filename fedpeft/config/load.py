"""Read an experiment file: every error at once, each with file, key, value and bound."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedpeft import plugins
from fedpeft.config.base import Frozen
from fedpeft.config.choice import Choice, Choices
from fedpeft.config.explain import explain
from fedpeft.config.influence import idle_bounds
from fedpeft.config.privacy import Privacy
from fedpeft.config.schema import (
    Calibration,
    Compute,
    Evaluate,
    Experiment,
    Feedback,
    Output,
    Pretrain,
    Rounds,
    Simulation,
    Train,
)
from fedpeft.config.toml import table_of, text_of
from fedpeft.errors import ConfigError

__all__ = ["glance", "load", "parse", "read"]

_CHOICES = {
    "model": "model",
    "data": "source",
    "partition": "partition",
    "task": "task",
    "adapter": "adapter",
    "strategy": "strategy",
    "codec": "codec",
    "codec_down": "codec",
    "pretrain_data": "source",
    "calibration_data": "source",
}
_CHAINS = ("codec", "codec_down")
"""Choices that may be several, as an array of tables."""
_OPTIONAL = ("pretrain_data", "calibration_data")
_TABLES: dict[str, type[Frozen]] = {
    "feedback": Feedback,
    "train": Train,
    "rounds": Rounds,
    "evaluate": Evaluate,
    "compute": Compute,
    "output": Output,
    "simulation": Simulation,
    "pretrain": Pretrain,
    "calibration": Calibration,
    "privacy": Privacy,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "codec": {"name": "none"},
    "codec_down": {"name": "none"},
    "strategy": {"name": "fedavg"},
    **{name: {} for name in ("feedback", "train", "rounds", "evaluate", "compute", "output", "simulation")},
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def load(path: Path, overrides: Iterable[str] = (), *, outside: bool = True) -> Experiment:
    """Read one TOML file and apply ``a.b=c`` overrides; without ``outside`` no plug-in from elsewhere is imported.

    Raises:
        ConfigError: the file cannot be read, or lists everything that is wrong in it.
    """
    return read(text_of(path), overrides, where=str(path), name=path.stem, outside=outside)


def glance(path: Path, overrides: Iterable[str] = ()) -> tuple[Simulation, Compute] | None:
    """Return how a file would be run, before the parts it names are imported, seconds of work; None if that is wrong.

    Nothing is refused here: ``load`` says what is wrong, and with all else that is.
    """
    try:
        table = table_of(text_of(path), overrides, where=str(path))
        return Simulation.model_validate(table.get("simulation", {})), Compute.model_validate(table.get("compute", {}))
    except (ConfigError, ValidationError):
        return None


def read(text: str, overrides: Iterable[str] = (), *, where: str, name: str, outside: bool = True) -> Experiment:
    """Read the text of a file; the experiment has this name unless it says another.

    Raises:
        ConfigError: lists everything that is wrong in it, beginning with where it comes from.
    """
    table = table_of(text, overrides, where=where)
    table.setdefault("name", name)
    if not outside:
        _require_inside(table, where)
    return parse(table, where=where)


def _require_inside(table: Mapping[str, Any], where: str) -> None:
    """Refuse names of modules before any of them is imported."""
    for key in _CHOICES:
        given = table.get(key)
        for each in given if isinstance(given, list) else [given]:
            if isinstance(each, Mapping) and "." in str(each.get("name", "")):
                raise ConfigError(f"{where}: {key}.name = {each['name']!r}: only fedpeft's own plug-ins are taken here")


def parse(table: Mapping[str, Any], *, where: str = "experiment") -> Experiment:
    """Check a table as a whole.

    Raises:
        ConfigError: one line for each thing that is wrong.
    """
    problems: list[str] = []
    known = ["name", "seed", *_CHOICES, *_TABLES]
    problems += [f"{key}: unknown key{plugins.nearest(key, known)}" for key in table if key not in known]
    merged = {**_DEFAULTS, **table}
    values: dict[str, Any] = {
        "name": _checked_name(merged.get("name", "experiment"), problems),
        "seed": _checked_seed(merged.get("seed", 0), problems),
    }
    for key, group in _CHOICES.items():
        read = _choices if key in _CHAINS else _choice
        values[key] = read(key, group, merged, problems)
    for key, kind in _TABLES.items():
        values[key] = _validated(kind, merged[key], key, problems) if key in merged else None
    problems += _across(values) if not problems else []
    if problems:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
    return Experiment(**values)


def _choice(key: str, group: str, table: Mapping[str, Any], problems: list[str]) -> Choice | None:
    if key not in table:
        if key not in _OPTIONAL:
            problems.append(f"{key}: missing table; add [{key}] with a name{plugins.nearest('', plugins.names(group))}")
        return None
    given = table[key]
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        known = plugins.nearest("", plugins.names(group))
        problems.append(f"{key} = {given!r}: expected a table with a name, [{key}] and name = ...{known}")
        return None
    try:
        kind: type[Frozen] = vars(plugins.load(group, given["name"]))["Options"]
    except ConfigError as error:
        problems.append(f"{key}.name: {error}")
        return None
    own = {name: value for name, value in given.items() if name != "name"}
    options = _validated(kind, own, key, problems, group=group)
    return Choice(group=group, name=given["name"], options=options) if options is not None else None


def _choices(key: str, group: str, table: Mapping[str, Any], problems: list[str]) -> Choices | None:
    """Return one or more choices; an array's tables are numbered from 0 in what is said of them."""
    given = table[key]
    places = {f"{key}.{index}": each for index, each in enumerate(given)} if isinstance(given, list) else {key: given}
    if not places:
        problems.append(f"{key} = []: expected at least one table, [[{key}]] and name = ...")
    stages = [_choice(place, group, places, problems) for place in places]
    return Choices(tuple(stage for stage in stages if stage is not None)) if None not in stages else None


def _validated(
    kind: type[Frozen], given: Any, key: str, problems: list[str], *, group: str | None = None
) -> Frozen | None:
    """Validate through JSON: strict about types, while TOML's arrays still fill tuples."""
    if not isinstance(given, Mapping):
        problems.append(f"{key} = {given!r}: expected a table, [{key}]")
        return None
    try:
        return kind.model_validate_json(json.dumps(given))
    except TypeError:
        problems.append(f"{key}: holds a date or a time, and no option takes one; quote it to make it a string")
    except ValidationError as error:
        problems += explain(key, kind, given, error, group=group)
    return None


def _checked_name(value: Any, problems: list[str]) -> Any:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        problems.append(f"name = {value!r}: expected up to 100 letters, digits, '.', '_' or '-'")
    return value


def _checked_seed(value: Any, problems: list[str]) -> Any:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        problems.append(f"seed = {value!r}: expected an integer, 0 <= seed < 2**63")
    return value


def _across(values: Mapping[str, Any]) -> list[str]:
    """Check what no single table can: settings that contradict each other or would have no effect."""
    train, rounds = values["train"], values["rounds"]
    problems = []
    if train.optimizer == "adamw" and train.momentum:
        problems.append(
            f"train.momentum = {train.momentum}: has no effect with optimizer 'adamw'; remove it or use 'sgd'"
        )
    if train.local_steps and train.local_epochs != 1:
        problems.append(
            f"train.local_epochs = {train.local_epochs}: has no effect with train.local_steps; remove either"
        )
    if train.warmup_rounds >= rounds.num_rounds and train.warmup_rounds:
        problems.append(
            f"train.warmup_rounds = {train.warmup_rounds}: expected < rounds.num_rounds = {rounds.num_rounds}"
        )
    if rounds.clients_per_round and rounds.min_clients > rounds.clients_per_round:
        problems.append(
            f"rounds.min_clients = {rounds.min_clients}: "
            f"expected <= rounds.clients_per_round = {rounds.clients_per_round}"
        )
    if rounds.sampling == "poisson" and rounds.clients_per_round is None:
        problems.append("rounds.sampling = 'poisson': has no effect without rounds.clients_per_round; set it")
    problems += [*_idle_feedback(values), *_spares(values), *_idle_room(values["compute"]), *idle_bounds(values)]
    for name in ("pretrain", "calibration"):
        if (values[name] is None) != (values[f"{name}_data"] is None):
            problems.append(f"{name} and {name}_data: give both tables or neither")
    return problems


def _idle_feedback(values: Mapping[str, Any]) -> list[str]:
    return [
        f"feedback.{side} = true: has no effect with {key} 'none'; remove it or set {key}"
        for side, key in (("up", "codec"), ("down", "codec_down"))
        if vars(values["feedback"])[side] and values[key].names == ("none",)
    ]


def _idle_room(compute: Compute) -> list[str]:
    if compute.cache_frozen or compute.cache_bytes == Compute().cache_bytes:
        return []
    return [f"compute.cache_bytes = {compute.cache_bytes}: has no effect without compute.cache_frozen; set it to true"]


def _spares(values: Mapping[str, Any]) -> list[str]:
    """Check that spare clients have an effect, and that nothing depends on who is not counted."""
    rounds = values["rounds"]
    if not rounds.spare_clients:
        return []
    said = f"rounds.spare_clients = {rounds.spare_clients}"
    problems = []
    if rounds.clients_per_round is None:
        problems.append(f"{said}: has no effect without rounds.clients_per_round; set it")
    if rounds.sampling == "poisson":
        problems.append(f"{said}: a poisson cohort has no fixed size to fill up; remove it or use sampling 'fixed'")
    if values["privacy"] is not None:
        problems.append(f"{said}: with [privacy] whoever is asked is charged; raise rounds.clients_per_round instead")
    if values["feedback"].up:
        problems.append(f"{said}: with feedback.up a client whose reply is not counted would lose it; remove either")
    return problems
