"""Header and body as one Flower record: the body is one opaque array, so Flower cuts and hashes it but never reads it.

The checksum is the sha256 over the header's bytes and the body's sha256; the header holds the latter too.
"""

from hashlib import sha256
from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedpeft.errors import WireError
from fedpeft.timing import timed
from fedpeft.wire.convert import from_bytes, to_bytes
from fedpeft.wire.message import Header

__all__ = ["pack", "size", "unpack"]

_HEADER, _BODY, _CHECKSUM = "fedpeft.header", "fedpeft.body", "checksum"
_STYPE = "fedpeft.v1"

_H = TypeVar("_H", bound=Header)


@timed("codec")
def pack(header: Header, body: bytes = b"") -> RecordDict:
    """Return what a Flower message carries.

    Raises:
        WireError: the header holds a value that no receiver would accept.
    """
    digest = sha256(body).digest()
    head = to_bytes(header, payload_sha256=digest)
    array = Array(dtype="uint8", shape=(len(body),), stype=_STYPE, data=body)
    config = ConfigRecord({_HEADER: head, _CHECKSUM: _checksum(head, digest)})
    return RecordDict({_HEADER: config, _BODY: ArrayRecord({_BODY: array})})


@timed("codec")
def unpack(record: RecordDict, kind: type[_H]) -> tuple[_H, bytes]:
    """Return header and body as they were packed; ``expect`` then says whether they are meant for the receiver.

    Raises:
        WireError: another structure, version or kind, or a checksum that does not hold.
    """
    head, checksum, body = _parts(record)
    digest = sha256(body).digest()
    if checksum != _checksum(head, digest):
        raise WireError(
            f"{kind.__name__.lower()}: checksum does not hold over {len(head)} + {len(body)} bytes; damaged"
        )
    header, expected = from_bytes(head, kind)
    if digest != expected:
        raise WireError(f"{header}: payload_sha256 is {expected.hex()[:12]}, expected {digest.hex()[:12]} of the body")
    return header, body


def size(record: RecordDict) -> int:
    """Return the bytes sent for header, checksum and body.

    Raises:
        WireError: not a record of this format.
    """
    return sum(len(part) for part in _parts(record))


def _parts(record: RecordDict) -> tuple[bytes, bytes, bytes]:
    """Return header, checksum and body of exactly the structure that pack gives."""
    if set(record) != {_HEADER, _BODY}:
        raise WireError(f"record: {_keys(record)}, expected {_HEADER!r} and {_BODY!r}")
    config, arrays = record[_HEADER], record[_BODY]
    if not isinstance(config, ConfigRecord) or set(config) != {_HEADER, _CHECKSUM}:
        raise WireError(f"record {_HEADER!r}: expected a ConfigRecord of {_HEADER!r} and {_CHECKSUM!r}")
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {_BODY}:
        raise WireError(f"record {_BODY!r}: expected an ArrayRecord of {_BODY!r} alone")
    return _bytes(config, _HEADER), _bytes(config, _CHECKSUM), _body(arrays[_BODY])


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


def _checksum(head: bytes, digest: bytes) -> bytes:
    return sha256(head + digest).digest()
