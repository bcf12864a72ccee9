"""Flower messages for tests; no torch is imported here."""

import time

from flwr.app import Message, Metadata, RecordDict

from fedpeft.wire.record import Content, record_of


def content(body: bytes = b"body", header: bytes = b"header") -> Content:
    return Content(header, b"checksum", body)


def message_of(body: bytes = b"body", *, kind: str = "train", ttl: float = 60.0) -> Message:
    return made(record_of(content(body)), kind=kind, ttl=ttl)


def made(record: RecordDict, *, kind: str, ttl: float = 60.0) -> Message:
    metadata = Metadata(
        run_id=7,
        message_id="m",
        src_node_id=0,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="3",
        created_at=time.time(),
        ttl=ttl,
        message_type=kind,
    )
    return Message(record, metadata=metadata)
