"""Headers to protobuf bytes and back; reading is strict and bounded."""

import math
from collections.abc import Callable
from typing import Literal, TypeVar

from google.protobuf.message import DecodeError

from fedpeft.errors import RefusedError, WireError
from fedpeft.strategies.base import Directive
from fedpeft.tensors import Spec
from fedpeft.wire.message import VERSION, Broadcast, Carried, Changes, Envelope, Evaluated, Header, Join, Joined, Update
from fedpeft.wire.pb.v1 import messages_pb2 as pb

__all__ = ["MAX_HEADER_BYTES", "MAX_TENSORS", "from_bytes", "require_version", "to_bytes"]

MAX_HEADER_BYTES = 1 << 21
"""A longer header is refused before it is read."""
MAX_TENSORS = 1 << 14
"""A longer manifest is refused before it is read."""
_MAX_DIMENSIONS = 8
_MAX_STAGES = 8
_MAX_COUNT = 1 << 53
_MAX_SHOWN = 80

_H = TypeVar("_H", bound=Header)
_KINDS: dict[Literal["train", "evaluate"], pb.Broadcast.Kind] = {
    "train": pb.Broadcast.KIND_TRAIN,
    "evaluate": pb.Broadcast.KIND_EVALUATE,
}


def to_bytes(header: Header, *, payload_sha256: bytes) -> bytes:
    """Return the header as protobuf; the same header gives the same bytes.

    Raises:
        WireError: a value that no receiver would accept; names it.
    """
    try:
        message = pb.Header.FromString(header.envelope.source)
        message.payload_sha256 = payload_sha256
        _write_envelope(message, header.envelope)
        _write(message, header)
    except (ValueError, TypeError) as error:
        raise WireError(f"{header}: a value has no place in the header: {error}") from error
    data = message.SerializeToString(deterministic=True)
    from_bytes(data, type(header))
    return data


def from_bytes(data: bytes, kind: type[_H]) -> tuple[_H, bytes]:
    """Return a header of the wanted kind, and the sha256 that its body must have.

    Raises:
        WireError: another kind or version, or a field that does not hold what it must; names it.
    """
    message = _parse(data)
    found = message.WhichOneof("kind")
    if found is None:
        raise WireError(f"header: kind is none that version {VERSION} knows, expected {kind.__name__.lower()}")
    header = _READ[found](message, _read_envelope(message, data))
    if not isinstance(header, kind):
        raise WireError(f"{header}: kind is {found}, expected {kind.__name__.lower()}")
    return header, message.payload_sha256


def require_version(data: bytes) -> None:
    """Refuse a header that is none of this format, before anything it says is looked at.

    Raises:
        WireError: too long, no protobuf, or another version.
    """
    _parse(data)


def _parse(data: bytes) -> pb.Header:
    if len(data) > MAX_HEADER_BYTES:
        raise RefusedError("size", f"header of {len(data)} bytes: expected at most {MAX_HEADER_BYTES}")
    try:
        message = pb.Header.FromString(data)
    except DecodeError as error:
        raise WireError(f"header of {len(data)} bytes is no protobuf message of this format") from error
    if message.version != VERSION:
        raise RefusedError(
            "version", f"header: version {message.version}, expected {VERSION}; run the same fedpeft on both sides"
        )
    return message


def _write_envelope(message: pb.Header, envelope: Envelope) -> None:
    message.version = VERSION
    message.job = envelope.job
    message.round = envelope.round_number
    message.config_hash = envelope.config_hash
    message.plan_hash = envelope.plan_hash
    message.base_hash = envelope.base_hash
    del message.codec[:]
    message.codec.extend(envelope.codec)
    del message.manifest[:]
    told = envelope.carries.told
    message.manifest.extend(pb.TensorSpec(name=s.name, shape=s.shape, dtype=s.dtype) for s in told)
    message.manifest_hash = envelope.carries.manifest_hash
    message.num_elements = envelope.carries.num_elements
    message.privacy = envelope.privacy
    message.fence = envelope.fence
    message.answers = envelope.answers
    message.run = envelope.run


def _read_envelope(message: pb.Header, source: bytes) -> Envelope:
    if len(message.manifest) > MAX_TENSORS:
        raise WireError(f"header: manifest of {len(message.manifest)} tensors, expected at most {MAX_TENSORS}")
    if len(message.codec) > _MAX_STAGES:
        raise WireError(f"header: codec of {len(message.codec)} stages, expected at most {_MAX_STAGES}")
    told = tuple(_read_spec(spec) for spec in message.manifest)
    _distinct("manifest", [spec.name for spec in told])
    num_elements = _count("num_elements", message.num_elements, at_least=sum(spec.num_elements for spec in told))
    return Envelope(
        job=message.job,
        round_number=message.round,
        config_hash=message.config_hash,
        plan_hash=message.plan_hash,
        base_hash=message.base_hash,
        codec=tuple(message.codec),
        carries=Carried(manifest_hash=message.manifest_hash, num_elements=num_elements, told=told),
        privacy=message.privacy,
        fence=message.fence,
        answers=message.answers,
        run=message.run,
        payload=message.payload_sha256,
        source=source,
    )


def _read_spec(spec: pb.TensorSpec) -> Spec:
    if len(spec.shape) > _MAX_DIMENSIONS:
        raise WireError(
            f"header: tensor {_shown(spec.name)} has {len(spec.shape)} dimensions, at most {_MAX_DIMENSIONS}"
        )
    return Spec(name=spec.name, shape=tuple(spec.shape), dtype=spec.dtype)


def _write(message: pb.Header, header: Header) -> None:
    match header:
        case Broadcast():
            message.broadcast.client = header.client
            message.broadcast.kind = _KINDS[header.kind]
            _write_directive(message.broadcast.directive, header.directive)
            _write_changes(message.broadcast, header.changes)
        case Update():
            _write_update(message.update, header)
        case Evaluated():
            message.evaluated.client = header.client
            message.evaluated.num_examples = header.num_examples
            message.evaluated.sums.clear()
            message.evaluated.sums.update(header.sums)
        case Join():
            message.join.SetInParent()
        case Joined():
            message.joined.client = header.client
            message.joined.versions.clear()
            message.joined.versions.update(header.versions)


def _write_update(message: pb.Update, update: Update) -> None:
    message.client = update.client
    message.num_examples = update.num_examples
    message.num_steps = update.num_steps
    message.ClearField("train_loss")
    if update.train_loss is not None:
        message.train_loss = update.train_loss
    message.seconds = update.seconds


def _write_changes(message: pb.Broadcast, changes: Changes | None) -> None:
    message.ClearField("changes")
    if changes is not None:
        given = {} if changes.since is None else {"since": changes.since}
        message.changes.CopyFrom(pb.Changes(until=changes.until, adapter_hash=changes.adapter_hash, **given))


def _write_directive(message: pb.Directive, directive: Directive) -> None:
    message.Clear()
    if directive.train is not None:
        message.train.SetInParent()
        message.train.names.extend(directive.train)
    if directive.rank is not None:
        message.rank = directive.rank
    if directive.scale != 1.0:
        message.scale = directive.scale
    message.held = directive.held


def _read_broadcast(message: pb.Header, envelope: Envelope) -> Broadcast:
    given = message.broadcast
    kinds = {number: kind for kind, number in _KINDS.items()}
    if given.kind not in kinds:
        raise WireError(f"broadcast to client {given.client}: kind {given.kind}, expected one of {sorted(_KINDS)}")
    directive = _read_directive(given.directive)
    changes = _read_changes(given.changes) if given.HasField("changes") else None
    return Broadcast(
        envelope=envelope, client=given.client, kind=kinds[given.kind], directive=directive, changes=changes
    )


def _read_changes(given: pb.Changes) -> Changes:
    since = given.since if given.HasField("since") else None
    if since is not None and since > given.until:
        raise WireError(f"header: changes.since = {since}, expected at most changes.until = {given.until}")
    return Changes(since=since, until=given.until, adapter_hash=given.adapter_hash)


def _read_directive(given: pb.Directive) -> Directive:
    train = tuple(given.train.names) if given.HasField("train") else None
    _distinct("directive.train", train or ())
    rank = _count("directive.rank", given.rank) if given.HasField("rank") else None
    scale = _finite("directive.scale", given.scale) if given.HasField("scale") else 1.0
    if scale <= 0:
        raise WireError(f"header: directive.scale = {scale}, expected a number > 0")
    if given.held and given.held >= (rank or 0):
        raise WireError(f"header: directive.held = {given.held}, expected less than directive.rank, {rank}")
    return Directive(train=train, rank=rank, held=given.held, scale=scale)


def _read_update(message: pb.Header, envelope: Envelope) -> Update:
    given = message.update
    return Update(
        envelope=envelope,
        client=given.client,
        num_examples=_weight(given.num_examples),
        num_steps=_count("num_steps", given.num_steps, at_least=0),
        train_loss=_finite("train_loss", given.train_loss) if given.HasField("train_loss") else None,
        seconds=_finite("seconds", given.seconds, at_least=0.0),
    )


def _read_evaluated(message: pb.Header, envelope: Envelope) -> Evaluated:
    given = message.evaluated
    sums = {name: _finite(f"sums.{name}", value) for name, value in sorted(given.sums.items())}
    num_examples = _count("num_examples", given.num_examples, at_least=0)
    return Evaluated(envelope=envelope, client=given.client, num_examples=num_examples, sums=sums)


def _read_join(message: pb.Header, envelope: Envelope) -> Join:
    return Join(envelope=envelope)


def _read_joined(message: pb.Header, envelope: Envelope) -> Joined:
    given = message.joined
    return Joined(envelope=envelope, client=given.client, versions=dict(sorted(given.versions.items())))


_READ: dict[str, Callable[[pb.Header, Envelope], Header]] = {
    "broadcast": _read_broadcast,
    "update": _read_update,
    "evaluated": _read_evaluated,
    "join": _read_join,
    "joined": _read_joined,
}


def _count(name: str, value: int, *, at_least: int = 1) -> int:
    if not at_least <= value <= _MAX_COUNT:
        raise WireError(f"header: {_shown(name)} = {value}, expected {at_least} to {_MAX_COUNT}")
    return value


def _weight(value: int) -> int:
    try:
        return _count("num_examples", value)
    except WireError as error:
        raise RefusedError("weight", str(error)) from error


def _finite(name: str, value: float, *, at_least: float = -math.inf) -> float:
    if not (math.isfinite(value) and value >= at_least):
        wanted = "a finite number" + " >= 0" * (at_least == 0)
        raise RefusedError("not_finite", f"header: {_shown(name)} = {value}, expected {wanted}")
    return value


def _distinct(name: str, values: tuple[str, ...] | list[str]) -> None:
    if len(set(values)) != len(values) or "" in values:
        raise WireError(f"header: {name} has a name that is empty or occurs twice, expected distinct names")


def _shown(value: object) -> str:
    """Return what a sender chose, safe to stand in a log."""
    return repr(value)[:_MAX_SHOWN]
