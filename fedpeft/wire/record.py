"""The structure of what a Flower message of fedpeft carries: header, checksum and body, none of them read here.

What passes messages on needs no more than this, so neither torch nor a model library is imported.
"""

import time
from typing import NamedTuple

from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict

from fedpeft.errors import WireError

__all__ = ["BEHIND", "GAVE_UP", "Content", "content_of", "record_of", "server_message"]

GAVE_UP = 1000
"""Flower error code of a client that names its reason."""
BEHIND = 1003
"""Flower error code of a client that does not hold what it was sent changes of."""
_HEADER, _BODY, _CHECKSUM = "fedpeft.header", "fedpeft.body", "checksum"
_STYPE = "fedpeft.v1"
_SERVER_NODE = 0


class Content(NamedTuple):
    """The three parts of a record."""

    header: bytes
    checksum: bytes
    """The sha256 over the header and the body's sha256."""
    body: bytes


def record_of(content: Content) -> RecordDict:
    """Return what a Flower message carries."""
    array = Array(dtype="uint8", shape=(len(content.body),), stype=_STYPE, data=content.body)
    config = ConfigRecord({_HEADER: content.header, _CHECKSUM: content.checksum})
    return RecordDict({_HEADER: config, _BODY: ArrayRecord({_BODY: array})})


def content_of(record: RecordDict) -> Content:
    """Return the parts of exactly the structure that record_of gives.

    Raises:
        WireError: not a record of this format; names the part.
    """
    if set(record) != {_HEADER, _BODY}:
        raise WireError(f"record: {_keys(record)}, expected {_HEADER!r} and {_BODY!r}")
    config, arrays = record[_HEADER], record[_BODY]
    if not isinstance(config, ConfigRecord) or set(config) != {_HEADER, _CHECKSUM}:
        raise WireError(f"record {_HEADER!r}: expected a ConfigRecord of {_HEADER!r} and {_CHECKSUM!r}")
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {_BODY}:
        raise WireError(f"record {_BODY!r}: expected an ArrayRecord of {_BODY!r} alone")
    return Content(_bytes(config, _HEADER), _bytes(config, _CHECKSUM), _body(arrays[_BODY]))


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
