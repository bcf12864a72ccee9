"""A downlink of changes: a client is sent how the global adapter changed since the one that it holds.

With a codec that leaves entries out (``codec_down``) the server goes on from what its codec makes of a round's change,
so adapter t is adapter t-1 plus the decoded change of round t, in float32, and both sides have the same bits. Adapter 0
is the plan's, which every client has. A client keeps the adapter it trained from, with its number. The server keeps the
packed changes of the last rounds, while together they are smaller than the adapter, and whom it knows to hold which: a
client that answered with a valid update of round r holds adapter r-1 or a later one. It sends what is missing, one part
a round; a client leaves out the parts that it has. Whoever misses more is sent the whole adapter as float32.

The message names the hash of the adapter that must come out. A client where it does not, one that lost its memory
among them, refuses with a code of its own, is sent the whole adapter at once, and no round is spoilt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from fedpeft.adapters.base import Adapter, Slot
from fedpeft.codecs.base import Codec, Common
from fedpeft.codecs.frame import Reader, number
from fedpeft.config import Experiment
from fedpeft.errors import BehindError, UnsupportedError
from fedpeft.strategies.base import State, Strategy
from fedpeft.tensors import Spec, Tensors

__all__ = [
    "Held",
    "caught_up",
    "confirmed",
    "held_by",
    "held_of",
    "holding",
    "missing",
    "reaches",
    "require_changes",
    "settled_change",
    "without_held",
]

_PREFIX = "downlink/"
"""Before a tensor's name in what a client keeps; no strategy's own memory is named so."""
_VERSION = "downlink.version"
_CHANGE, _CLIENTS, _VERSIONS = "change/", "clients", "versions"
"""In State.sent: packed changes, uint8, by round; clients, int64, ascending, and which adapter each holds."""


def require_changes(experiment: Experiment, strategy: Strategy[Any], adapter: Adapter, slots: Sequence[Slot]) -> None:
    """Refuse a codec_down that leaves entries out where what is sent is no change of one adapter that all hold.

    Raises:
        UnsupportedError: names the setting, why, and the remedy.
    """
    name, plain = experiment.strategy.name, "choose none, bfloat16, float16, int8 or int4 as codec_down"
    said = f"codec_down = {', '.join(experiment.codec_down.names)!r} sends how the adapter changed, and"
    if not strategy.takes_feedback() or type(strategy).residual_parts is not Strategy.residual_parts:
        raise UnsupportedError(
            f"{said} strategy {name!r} makes each adapter anew or changes frozen weights, so the change is no smaller "
            f"than the adapter; {plain}"
        )
    if strategy.beside(slots).down:
        raise UnsupportedError(f"{said} strategy {name!r} sends tensors beside it that are no change; {plain}")
    if type(adapter).retract is not Adapter.retract:
        raise UnsupportedError(
            f"{said} adapter {experiment.adapter.name!r} brings its parameters back to where they live after each "
            f"round, where an adapter with entries left out is not; {plain}"
        )


def settled_change(
    codec: Codec,
    common: Common,
    names: Sequence[str],
    before: State,
    after: State,
    *,
    round_number: int,
    feedback: bool,
) -> State:
    """Return the state after a round: the adapter before it plus what clients decode of its change, and what they lack.

    ``after.adapter`` has the round's change on top of what was decoded before. With feedback what was left out so far
    is in ``exact`` and added to the next change; without, it is lost. ``names`` are the tensors that go down.
    """
    exact = after.adapter
    if before.exact:
        exact = exact + (before.exact - before.adapter)
    held = before.adapter.select(names)
    change = exact.select(names) - held
    body = codec.encode(change, common)
    decoded = held + codec.decode(body, change.manifest(), common)
    adapter = exact.replace(decoded)
    sent = _extended(before.sent, body, round_number, most=4 * held.num_elements)
    return replace(after, adapter=adapter, exact=exact if feedback else Tensors(), sent=sent)


def confirmed(state: State, clients: Sequence[int], version: int) -> State:
    """Return the state that knows these clients to hold this adapter, or a later one."""
    asked = torch.tensor(sorted(clients), dtype=torch.int64)
    known, versions = _known(state.sent)
    kept = ~torch.isin(known, asked)
    merged = torch.cat([known[kept], asked])
    order = torch.argsort(merged)
    told = torch.cat([versions[kept], torch.full_like(asked, version)])[order]
    return replace(state, sent=Tensors({**state.sent, _CLIENTS: merged[order], _VERSIONS: told}))


def held_by(state: State, client: int) -> int:
    """Return the number of the adapter that a client is known to hold; 0 of one that has sent nothing yet."""
    known, versions = _known(state.sent)
    at = int(torch.searchsorted(known, client))
    return int(versions[at]) if at < len(known) and int(known[at]) == client else 0


def reaches(state: State, since: int, until: int) -> bool:
    """Tell whether the changes from one adapter to another are kept; together they are smaller than the adapter."""
    return since == until or (since < until and _change(since + 1) in state.sent)


def missing(state: State, since: int, until: int) -> bytes:
    """Return the body of a client that holds adapter ``since``: a part a round, each after its length."""
    parts = [state.sent[_change(round_number)].numpy().tobytes() for round_number in range(since + 1, until + 1)]
    return b"".join(piece for part in parts for piece in (number(len(part)), part))


@final
@dataclass(frozen=True, kw_only=True)
class Held:
    """What a client holds of the global adapter."""

    version: int
    """The round whose aggregate it is; 0 is the plan's."""
    adapter: Tensors
    """The slots that go down, float32."""


def holding(held: Held) -> Tensors:
    """Return what the client keeps of it."""
    kept = Tensors((_PREFIX + name, value) for name, value in held.adapter.items())
    return kept.joined(Tensors({_PREFIX + _VERSION: torch.tensor([held.version])}))


def held_of(memory: Tensors, start: Tensors) -> Held:
    """Return what a client holds by all that it has kept; the plan's adapter, ``start``, where that is nothing."""
    kept = {name.removeprefix(_PREFIX): value for name, value in memory.items() if name.startswith(_PREFIX)}
    version = kept.pop(_VERSION, None)
    return Held(version=0, adapter=start) if version is None else Held(version=int(version), adapter=Tensors(kept))


def without_held(memory: Tensors) -> Tensors:
    """Return all that a client has kept but the global adapter."""
    return memory.without([name for name in memory if name.startswith(_PREFIX)])


def caught_up(
    codec: Codec,
    common: Callable[[int], Common],
    held: Held,
    body: bytes,
    manifest: Sequence[Spec],
    *,
    since: int,
    until: int,
    adapter_hash: str,
) -> Held:
    """Return the adapter ``until``, of what the client holds and the parts it lacks; ``common`` is by round.

    Raises:
        BehindError: it holds too old a one, or another adapter comes out than was meant.
        WireError: a part is damaged.
    """
    if not since <= held.version <= until:
        raise BehindError(f"holds adapter {held.version} and was sent the changes from {since} to {until}")
    adapter, reader = held.adapter.require(manifest, where="adapter held"), Reader(body, codec=codec.name)
    for round_number in range(since + 1, until + 1):
        part = reader.take(reader.number("part", most=len(body)), "part")
        if round_number > held.version:
            adapter = adapter + codec.decode(bytes(part), manifest, common(round_number))
    reader.end()
    if (found := adapter.digest()) != adapter_hash:
        raise BehindError(f"adapter {until} comes out as {found[:12]}, and the server has {adapter_hash[:12]}")
    return Held(version=until, adapter=adapter)


def _extended(sent: Tensors, body: bytes, round_number: int, *, most: int) -> Tensors:
    """Return what is kept after a round: its change, and of the last ones before it as many as fit with it."""
    changes = {name: value for name, value in sent.items() if name.startswith(_CHANGE)}
    changes[_change(round_number)] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    room, kept = most, dict[str, Tensor]()
    for name, value in reversed(changes.items()):
        room -= len(value) + len(number(0))
        if room <= 0:
            break
        kept[name] = value
    return sent.without(list(changes)).joined(Tensors(reversed(kept.items())))


def _known(sent: Tensors) -> tuple[Tensor, Tensor]:
    empty = torch.zeros(0, dtype=torch.int64)
    return sent.get(_CLIENTS, empty), sent.get(_VERSIONS, empty)


def _change(round_number: int) -> str:
    return f"{_CHANGE}{round_number:06d}"
