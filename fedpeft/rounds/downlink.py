"""What goes down to a client, and how it arrives: the adapter packed, or how it changed since the one it holds.

The rules of the latter are in ``training/changes.py``; here they meet messages.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from typing import Any, Literal, final

from fedpeft.codecs.base import Common
from fedpeft.codecs.layout import read, write
from fedpeft.errors import WireError
from fedpeft.strategies.base import Directive, State
from fedpeft.strategies.ranks import padded, sliced
from fedpeft.tensors import Spec, Tensors
from fedpeft.timing import timed
from fedpeft.training.changes import Held, caught_up, held_by, held_of, holding, missing, reaches
from fedpeft.training.workbench import Workbench
from fedpeft.wire.message import Broadcast, Carried, Changes

__all__ = ["Downlink", "Parcel", "arrived", "kept", "laid_over", "packed"]

_WHOLE = "none"
"""The codec of a whole adapter where changes go down: both sides must have the same bits."""


@final
@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What one client is sent."""

    codec: tuple[str, ...]
    carries: Carried
    changes: Changes | None
    body: bytes = field(repr=False)

    @cached_property
    def digest(self) -> bytes:
        """The body's sha256."""
        return sha256(self.body).digest()


@final
@dataclass(frozen=True, kw_only=True)
class Downlink:
    """What each client of a round is sent; those that are sent the same share one body, made once."""

    bench: Workbench
    state: State
    round_number: int
    kind: Literal["train", "evaluate"]
    _made: dict[tuple[int | None, int | None], Parcel] = field(default_factory=dict, repr=False)

    def parcel(self, client: int, directive: Directive, *, whole: bool = False) -> Parcel:
        """Return what a client is sent; the whole adapter where it does not hold what changes would begin at."""
        since = None if whole or not self.bench.sends_changes else self._since(client)
        key = (directive.rank, since)
        if key not in self._made:
            self._made[key] = self._changes(since) if self.bench.sends_changes else self._adapter(directive)
        return self._made[key]

    def _since(self, client: int) -> int | None:
        """Return the adapter that a client's changes begin at; None where it misses more than is kept."""
        since = held_by(self.state, client)
        return since if reaches(self.state, since, _version(self.kind, self.round_number)) else None

    @timed("codec")
    def _adapter(self, directive: Directive) -> Parcel:
        """Return the adapter, for training what the strategy sends beside it, and what rebuilds a residual."""
        slots, strategy = self.bench.adapted.attached.slots, self.bench.strategy
        whole = (self.state.exact or self.state.adapter).select(spec.name for spec in self.bench.going_down)
        sending = sliced(whole, slots, rank=directive.rank)
        if self.kind == "train":
            beside = strategy.broadcast(slots, self.state)
            sending = sending.joined(beside.require(strategy.beside(slots).down, where="sent beside the adapter"))
        parts = strategy.residual_parts(slots, self.state)
        sending = sending.joined(parts)
        return Parcel(
            codec=self.bench.experiment.codec_down.words,
            carries=Carried.of(sending.manifest(), told=parts.manifest()),
            changes=None,
            body=self.bench.codec_down.encode(sending, self.bench.common("down", round_number=self.round_number)),
        )

    @timed("codec")
    def _changes(self, since: int | None) -> Parcel:
        """Return what changed since an adapter, or the whole one."""
        adapter = self.state.adapter.select(spec.name for spec in self.bench.going_down)
        until = _version(self.kind, self.round_number)
        return Parcel(
            codec=(_WHOLE,) if since is None else self.bench.experiment.codec_down.words,
            carries=Carried.of(adapter.manifest()),
            changes=Changes(since=since, until=until, adapter_hash=adapter.digest()),
            body=write(adapter) if since is None else missing(self.state, since, until),
        )


def packed(bench: Workbench, header: Broadcast) -> tuple[str, ...]:
    """Return how the body of a broadcast must be packed, in the experiment's words; client half.

    Raises:
        WireError: it says of changes what this run does not do.
    """
    if (header.changes is not None) != bench.sends_changes:
        raise WireError(f"{header}: changes are {'' if header.changes else 'not '}sent, unlike codec_down says")
    if header.changes is None:
        return bench.experiment.codec_down.words
    if header.changes.until != (until := _version(header.kind, header.envelope.round_number)):
        raise WireError(f"{header}: changes.until = {header.changes.until}, expected {until} in this round")
    return (_WHOLE,) if header.changes.since is None else bench.experiment.codec_down.words


def arrived(bench: Workbench, header: Broadcast, body: bytes, manifest: tuple[Spec, ...], memory: Tensors) -> Tensors:
    """Return the tensors of a checked broadcast, of what came and of what the client has kept; client half.

    Raises:
        WireError: the body is no encoding of this manifest.
        BehindError: the client does not hold what was changed.
    """
    changes, round_number = header.changes, header.envelope.round_number
    if changes is None:
        return bench.codec_down.decode(body, manifest, bench.common("down", round_number=round_number))
    told: dict[str, Any] = {"until": changes.until, "adapter_hash": changes.adapter_hash}
    if changes.since is None:
        came = read(body, manifest, codec=_WHOLE)
        if came.digest() != changes.adapter_hash:
            raise WireError(f"{header}: the adapter is not the one that changes.adapter_hash names; damaged")
        return came
    held = held_of(memory, bench.adapted.initial.select(spec.name for spec in bench.going_down))
    common = partial(_common, bench)
    return caught_up(bench.codec_down, common, held, body, manifest, since=changes.since, **told).adapter


def laid_over(bench: Workbench, header: Broadcast, came: Tensors) -> Tensors:
    """Lay what came over what the plan's seed made; ranks that this client does not hold are zero; client half."""
    slots, rank = bench.adapted.attached.slots, header.directive.rank
    start = padded(sliced(bench.adapted.initial, slots, rank=rank), slots, rank=rank)
    return start.replace(padded(came, slots, rank=rank))


def kept(bench: Workbench, header: Broadcast, received: Tensors) -> Tensors:
    """Return what a client keeps of the adapter it has received; nothing where it is sent no changes; client half."""
    if header.changes is None:
        return Tensors()
    adapter = received.select(spec.name for spec in bench.going_down)
    return holding(Held(version=header.changes.until, adapter=adapter))


def _common(bench: Workbench, round_number: int) -> Common:
    return bench.common("down", round_number=round_number)


def _version(kind: Literal["train", "evaluate"], round_number: int) -> int:
    """Return the number of the adapter that a message is about: evaluation is of what the round came to."""
    return round_number - (kind == "train")
