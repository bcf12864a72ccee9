"""The structure of what a Flower message of fedpeft carries: header, checksum, body, signature; none is read here.

What passes messages on needs no more than this, so neither torch nor a model library is imported.
"""

import time
from typing import NamedTuple

from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from google.protobuf.message import DecodeError as DamagedError

from fedpeft.errors import WireError

__all__ = [
    "BEHIND",
    "DAMAGED",
    "DECLINED",
    "GAVE_UP",
    "Content",
    "DamagedError",
    "content_of",
    "damaged",
    "record_of",
    "server_message",
]

GAVE_UP = 1000
"""Flower error code of a client that names its reason."""
DECLINED = 1003
"""Flower error code of a client whose operator's pins do not allow what was asked."""
DAMAGED = 1002
"""Flower error code that stands for a reply which could not be put together."""
BEHIND = 1004
"""Flower error code of a client that does not hold what it was sent changes of."""
_HEADER, _BODY, _CHECKSUM, _SIGNATURE = "fedpeft.header", "fedpeft.body", "checksum", "signature"
_STYPE = "fedpeft.v1"
_SERVER_NODE = 0


class Content(NamedTuple):
    """The parts of a record."""

    header: bytes
    checksum: bytes
    """The sha256 over the header and the body's sha256."""
    body: bytes
    signature: bytes = b""
    """The sender's, over the checksum and so over all; empty where it has no key."""


def record_of(content: Content) -> RecordDict:
    """Return what a Flower message carries."""
    array = Array(dtype="uint8", shape=(len(content.body),), stype=_STYPE, data=content.body)
    signed = {_SIGNATURE: content.signature} if content.signature else {}
    config = ConfigRecord({_HEADER: content.header, _CHECKSUM: content.checksum, **signed})
    return RecordDict({_HEADER: config, _BODY: ArrayRecord({_BODY: array})})


def content_of(record: RecordDict) -> Content:
    """Return the parts of exactly the structure that record_of gives.

    Raises:
        WireError: not a record of this format; names the part.
    """
    if set(record) != {_HEADER, _BODY}:
        raise WireError(f"record: {_keys(record)}, expected {_HEADER!r} and {_BODY!r}")
    config, arrays = record[_HEADER], record[_BODY]
    if not isinstance(config, ConfigRecord) or set(config) - {_SIGNATURE} != {_HEADER, _CHECKSUM}:
        raise WireError(f"record {_HEADER!r}: expected a ConfigRecord of {_HEADER!r} and {_CHECKSUM!r}")
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {_BODY}:
        raise WireError(f"record {_BODY!r}: expected an ArrayRecord of {_BODY!r} alone")
    signature = _bytes(config, _SIGNATURE) if _SIGNATURE in config else b""
    return Content(_bytes(config, _HEADER), _bytes(config, _CHECKSUM), _body(arrays[_BODY]), signature)


def server_message(
    record: RecordDict,
    *,
    message_type: str,
    run: int,
    node: int,
    message_id: str = "",
    group: str = "",
    ttl: float | None = None,
) -> Message:
    """Return the Flower message in which the server sends a record to a node, where no Flower runtime makes it."""
    metadata = Metadata(
        run_id=run,
        message_id=message_id,
        src_node_id=_SERVER_NODE,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=group,
        created_at=time.time(),
        ttl=ttl or DEFAULT_TTL,
        message_type=message_type,
    )
    message: Message = Message(record, metadata=metadata)  # type: ignore[call-overload]
    return message


def damaged(message_id: str) -> Message:
    """Return what stands for a reply to this message that Flower could not put together."""
    asked = server_message(RecordDict(), message_type="train", run=0, node=0, message_id=message_id)
    return Message(Error(DAMAGED, "the reply could not be put together, or is too large; see the log"), reply_to=asked)


def _bytes(config: ConfigRecord, name: str) -> bytes:
    value = config[name]
    if not isinstance(value, bytes):
        raise WireError(f"record {_HEADER!r}: {name} is {type(value).__name__}, expected bytes")
    return value


def _body(array: Array) -> bytes:
    got = (array.dtype, tuple(array.shape), array.stype)
    want = ("uint8", (len(array.data),), _STYPE)
    if got != want:
        raise WireError(f"record {_BODY!r}: dtype, shape and stype are {str(got)[:80]}, expected {want}")
    return array.data


def _keys(record: RecordDict) -> str:
    return f"{len(record)} parts {', '.join(map(repr, sorted(record)))}"[:80]
