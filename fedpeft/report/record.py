"""What is kept of one round: one canonical JSON line in ``rounds.jsonl``."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Annotated, ClassVar, final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fedpeft.errors import RefusalCode, ResumeError, RunError
from fedpeft.report.text import one_line

__all__ = ["Failure", "RoundRecord"]

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(ge=0)]


@final
@dataclass(frozen=True, kw_only=True)
class Failure:
    """A client that was asked and gave no usable reply."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    client: Count
    reason: str
    """One line of at most 500 characters; cut here, since a client may have written it."""
    code: RefusalCode = "refused"
    """What it is counted under: one of few words, whatever a client writes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason)[:500])


@final
@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What happened in one round; round 0 is the evaluation before training.

    Raises:
        RunError: a number is NaN or infinite; names it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    round: Count
    clients: tuple[Count, ...] = ()
    """Those that were asked, ascending."""
    failures: tuple[Failure, ...] = ()
    train_loss: float | None = None
    """Mean over the examples of the clients that replied; None when nobody trained."""
    metrics: dict[str, float] = field(default_factory=dict)
    """On the held-out data; empty when the round was not evaluated."""
    client_metrics: dict[str, float] = field(default_factory=dict)
    """On the clients' own held-out shares, weighted by examples."""
    epsilon: float | None = None
    """Spent so far, this round included; None without privacy."""
    clip: float | None = None
    """The norm that the server cut updates to; None where it cut none."""
    bytes_up: Count = 0
    bytes_down: Count = 0
    """Headers, checksums and bodies, as they were sent; what Flower and gRPC wrap around them is not counted."""
    bytes_up_fp32: Count = 0
    bytes_down_fp32: Count = 0
    """4 for each scalar in those bodies, and no header."""
    bytes_up_bound: Count | None = None
    """The fewest that the updates' bodies could take by their codec's model (``Codec.entropy_bits``), if it has one."""
    worker_processes: Count = 0
    """Processes beside the server's that trained the clients; 0 where they ran in its own, or on nodes of their own."""
    stack: Count = 1
    """Clients that were trained side by side in one pass, at most; 1 where each was alone."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by phase; the phases do not overlap."""

    def __post_init__(self) -> None:
        for name, value in _numbers(self):
            if not math.isfinite(value):
                raise RunError(
                    f"round {self.round}: {name} is {value}; training has diverged: "
                    "lower train.learning_rate or set train.max_grad_norm"
                )

    @property
    def total_seconds(self) -> float:
        """Wall time of the round."""
        return sum(self.seconds.values())

    def to_json(self) -> str:
        """Return one line, keys sorted, without a newline; equal records give equal lines."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "RoundRecord":
        """Read what to_json wrote.

        Raises:
            ResumeError: the line is no round record; names the field.
        """
        try:
            return _reader().validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "line"
            raise ResumeError(f"not a round record: {place}: {first['msg']}") from error


@cache
def _reader() -> TypeAdapter[RoundRecord]:
    return TypeAdapter(RoundRecord)


def _numbers(record: RoundRecord) -> Iterator[tuple[str, float]]:
    for name in ("train_loss", "epsilon", "clip"):
        if vars(record)[name] is not None:
            yield name, vars(record)[name]
    for group in ("metrics", "client_metrics", "seconds"):
        for name, value in vars(record)[group].items():
            yield f"{group}.{name}", value
