"""Flower messages for tests; no torch is imported here."""

from flwr.app import Message, RecordDict

from fedpeft.wire.record import Content, record_of, server_message


def content(body: bytes = b"body", header: bytes = b"header") -> Content:
    return Content(header, b"checksum", body)


def message_of(body: bytes = b"body", *, kind: str = "train", ttl: float = 60.0) -> Message:
    return made(record_of(content(body)), kind=kind, ttl=ttl)


def made(record: RecordDict, *, kind: str, ttl: float = 60.0) -> Message:
    return server_message(record, message_type=kind, run=7, node=1, message_id="m", group="3", ttl=ttl)
