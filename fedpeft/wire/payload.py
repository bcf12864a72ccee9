"""Header and body as one Flower record: the body is one opaque array, so Flower cuts and hashes it but never reads it.

The checksum is the sha256 over the header's bytes and the body's sha256; the header holds the latter too.
"""

from hashlib import sha256
from typing import TypeVar

from flwr.app import RecordDict

from fedpeft.errors import WireError
from fedpeft.timing import timed
from fedpeft.wire.convert import from_bytes, to_bytes
from fedpeft.wire.message import Header
from fedpeft.wire.record import Content, content_of, record_of

__all__ = ["pack", "size", "unpack"]

_H = TypeVar("_H", bound=Header)


@timed("codec")
def pack(header: Header, body: bytes = b"") -> RecordDict:
    """Return what a Flower message carries.

    Raises:
        WireError: the header holds a value that no receiver would accept.
    """
    digest = sha256(body).digest()
    head = to_bytes(header, payload_sha256=digest)
    return record_of(Content(head, _checksum(head, digest), body))


@timed("codec")
def unpack(record: RecordDict, kind: type[_H]) -> tuple[_H, bytes]:
    """Return header and body as they were packed; ``expect`` then says whether they are meant for the receiver.

    Raises:
        WireError: another structure, version or kind, or a checksum that does not hold.
    """
    head, checksum, body, _ = content_of(record)
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
    """Return the bytes sent for header, checksum, body and signature.

    Raises:
        WireError: not a record of this format.
    """
    return sum(len(part) for part in content_of(record))


def _checksum(head: bytes, digest: bytes) -> bytes:
    return sha256(head + digest).digest()
