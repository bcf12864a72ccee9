"""What a client that is let in, and means harm, can send: an honest reply taken apart, changed, and sealed again."""

from collections.abc import Callable
from hashlib import sha256

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict

from fedpeft.wire.pb.v1 import messages_pb2 as pb
from fedpeft.wire.record import Content, content_of, record_of
from fedpeft.wire.signature import Keys, Signer

__all__ = ["Change", "changed", "header_of", "keyring", "poisoned", "raw_field", "resealed"]

Change = Callable[[pb.Header], object]


def keyring(num_clients: int) -> tuple[Keys, dict[int, Signer]]:
    """Return the server's half and the clients' of new keys."""
    private = {client: Ed25519PrivateKey.generate() for client in range(num_clients)}
    keys = Keys({client: key.public_key() for client, key in private.items()})
    return keys, {client: Signer(key) for client, key in private.items()}


def header_of(record: RecordDict) -> pb.Header:
    return pb.Header.FromString(content_of(record).header)


def resealed(header: bytes, body: bytes, signer: Signer | None = None) -> RecordDict:
    """Return a record whose checksum holds over any header and body, signed if there is a key."""
    record = record_of(Content(header, sha256(header + sha256(body).digest()).digest(), body))
    return record if signer is None else signer.signed(record)


def changed(
    record: RecordDict, change: Change = lambda _: None, *, body: bytes | None = None, signer: Signer | None = None
) -> RecordDict:
    """Return a reply with another header, or another body, and every sum right."""
    header, body = header_of(record), content_of(record).body if body is None else body
    header.payload_sha256 = sha256(body).digest()
    change(header)
    return resealed(header.SerializeToString(), body, signer)


def raw_field(record: RecordDict, data: bytes, *, signer: Signer | None = None) -> RecordDict:
    """Return an update whose num_examples is written as these protobuf bytes, of whatever type."""
    header = header_of(record)
    header.update.ClearField("num_examples")
    update = header.update.SerializeToString() + data
    header.ClearField("update")
    whole = header.SerializeToString() + b"\x8a\x01" + _length(len(update)) + update
    return resealed(whole, content_of(record).body, signer)


def poisoned(record: RecordDict, values: Callable[[np.ndarray], None]) -> bytes:
    """Return the body with its float32 numbers changed in place; of the lossless codec, whose tail they are."""
    body = content_of(record).body
    count = header_of(record).num_elements
    numbers = np.frombuffer(body[-4 * count :], "<f4").copy()
    values(numbers)
    return body[: -4 * count] + numbers.tobytes()


def reply(message: Message, record: RecordDict) -> Message:
    return Message(record, reply_to=message)


def _length(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
