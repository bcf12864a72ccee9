"""The wire: versioned headers in protobuf, tensor bytes beside them, one Flower record each."""

from fedpeft.wire.message import VERSION, Broadcast, Envelope, Evaluated, Header, Join, Joined, Update, expect
from fedpeft.wire.payload import pack, size, unpack

__all__ = [
    "VERSION",
    "Broadcast",
    "Envelope",
    "Evaluated",
    "Header",
    "Join",
    "Joined",
    "Update",
    "expect",
    "pack",
    "size",
    "unpack",
]
