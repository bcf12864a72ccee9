"""A reply as one file: the record's parts behind a digest, so that a file that was torn or changed is none."""

from hashlib import sha256

from flwr.app import RecordDict

from fedpeft.errors import WireError
from fedpeft.wire.record import Content, content_of, record_of

__all__ = ["from_file", "to_file"]

_MAGIC = b"fedpeft reply 1\n"
_DIGEST, _LENGTH = 32, 8


def to_file(record: RecordDict) -> bytes:
    """Return a file's bytes; equal records give equal ones."""
    parts = b"".join(len(part).to_bytes(_LENGTH, "little") + part for part in content_of(record))
    return _MAGIC + sha256(parts).digest() + parts


def from_file(data: bytes) -> RecordDict:
    """Return what was written.

    Raises:
        WireError: it is not whole, or not what was written.
    """
    start = len(_MAGIC) + _DIGEST
    if data[: len(_MAGIC)] != _MAGIC or sha256(data[start:]).digest() != data[len(_MAGIC) : start]:
        raise WireError(f"stored reply of {len(data)} bytes: torn or damaged")
    parts, at = [], start
    for _ in Content._fields:
        size = int.from_bytes(data[at : at + _LENGTH], "little")
        parts.append(data[at + _LENGTH : at + _LENGTH + size])
        at += _LENGTH + size
    return record_of(Content(*parts))
