"""The pinned manifest: exact tables where another value means other data or another model, bounds where less is fine.

What it holds of a number is the most (or least) that the node takes part in; what it does not hold is not bounded.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, Literal, Self, final

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fedpeft.config.base import Frozen
from fedpeft.errors import InputError

__all__ = ["AdapterPins", "Pins", "PrivacyPins", "RoundsPins", "TrainPins", "open_text", "parse", "plain", "to_toml"]

_FORMAT: Literal[1] = 1
_OPEN = {"format": _FORMAT, "anything": True}
_OPEN_WORDS = "# Nothing is pinned: this node does what the server asks. See fedpeft deploy pins, and then pin.\n"
_WORDS = "# What this node takes part in; all else is refused before data is read (docs/how-to-deploy.md).\n"
_HASH = "^[0-9a-f]{64}$"


@final
class AdapterPins(Frozen):
    """What may be trained."""

    names: tuple[str, ...] = Field(min_length=1)
    """Adapters."""
    targets: tuple[str, ...] | None = None
    """Ends of the paths of layers that may be adapted."""
    max_rank: int | None = Field(default=None, ge=1)
    """Of each layer."""
    max_elements: int | None = Field(default=None, ge=1)
    """Scalars of a message's body."""


@final
class TrainPins(Frozen):
    """How long a round may train; a bound that is set refuses an experiment that says the other one."""

    max_local_steps: int | None = Field(default=None, ge=1)
    """Steps a round."""
    max_local_epochs: int | None = Field(default=None, ge=1)
    """Passes a round."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.max_local_steps is None) == (self.max_local_epochs is None):
            raise ValueError("give max_local_steps or max_local_epochs, as the experiment counts")
        return self


@final
class RoundsPins(Frozen):
    """How often, and among how many."""

    max_rounds: int = Field(ge=1)
    """Rounds of one job."""
    least_cohort: int = Field(ge=1)
    """rounds.min_clients may not be less: fewer replies than that make no aggregate."""


@final
class PrivacyPins(Frozen):
    """The least privacy; without this table an experiment need not have any."""

    unit: Literal["example", "client"]
    """Whom it must protect."""
    placement: Literal["central", "distributed"] = "central"
    """Of unit client: who adds the noise."""
    max_clip: float = Field(gt=0)
    """The largest clip, to which the noise is in proportion."""
    least_noise: float | None = Field(default=None, gt=0)
    """The smallest noise multiplier."""
    max_epsilon: float | None = Field(default=None, gt=0)
    """Of one experiment, spare rounds counted."""
    max_delta: float = Field(gt=0, lt=1)
    """The largest delta."""
    lifetime_epsilon: float | None = Field(default=None, gt=0)
    """Of all experiments on this client's data, by the node's own ledger."""
    lifetime_delta: float | None = Field(default=None, gt=0, lt=1)
    """Probability with which the former may not hold."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.least_noise is None and self.max_epsilon is None:
            raise ValueError("give least_noise or max_epsilon: without either the noise may be next to nothing")
        if (self.lifetime_epsilon is None) != (self.lifetime_delta is None):
            raise ValueError("lifetime_epsilon and lifetime_delta belong together")
        if self.placement == "distributed" and self.unit == "example":
            raise ValueError("placement belongs to unit = 'client'")
        return self


@final
class Pins(Frozen):
    """All that is pinned."""

    format: Literal[1] = _FORMAT
    """Of this file."""
    base_hash: str = Field(pattern=_HASH)
    """The sha256 over the frozen base model's tensors, as fedpeft deploy pins finds it: its revision, to the bit."""
    strategies: tuple[str, ...] = Field(min_length=1)
    """Ways to aggregate."""
    codecs: tuple[str, ...] = Field(min_length=1)
    """Stages of what is sent, up or down."""
    evaluate_on_clients: bool = False
    """Whether sums over the client's own held-out examples may be asked for."""
    model: dict[str, Any]
    """The experiment's [model], defaults written out; it must be this."""
    task: dict[str, Any]
    """The experiment's [task]; it must be this."""
    partition: dict[str, Any]
    """The experiment's [partition]; it must be this, since it says which examples are whose."""
    data: tuple[dict[str, Any], ...] = Field(min_length=1)
    """Each an experiment's [data]; whatever is read, for training, pretraining or calibration, must be one of them."""
    adapter: AdapterPins
    train: TrainPins
    rounds: RoundsPins
    privacy: PrivacyPins | None = None


def parse(text: str, *, where: Path | str) -> Pins | None:
    """Read a manifest; None where it says in so many words that nothing is pinned.

    Raises:
        InputError: one line for each thing that is wrong with it.
    """
    try:
        table = tomllib.loads(text)
        return None if table == _OPEN else Pins.model_validate_json(json.dumps(table))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise InputError(f"{where}: not valid TOML, or a date in it: {error}") from error
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc'])) or 'manifest'}: {each['msg']}" for each in error.errors()]
        raise InputError("\n".join(f"{where}: {each}" for each in wrong)) from error


def to_toml(pins: Pins) -> str:
    """Return a manifest that is read as these pins."""
    return _WORDS + tomli_w.dumps(plain(pins.model_dump()))


def open_text() -> str:
    """Return the manifest that pins nothing, and says so."""
    return _OPEN_WORDS + tomli_w.dumps(_OPEN)


def plain(value: Any) -> Any:
    """Return what TOML can say of a table: no None, and arrays for tuples."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if each is not None}
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value
