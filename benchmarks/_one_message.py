"""One Flower message in a process of its own, as Flower starts one.

    python -m benchmarks._one_message FOLDER [ADDRESS]

The folder holds the app's bundle, the message and what the node keeps; the reply is written there.
"""

import sys
from pathlib import Path

from flwr.app import ConfigRecord, Context, RecordDict

from fedpeft.engines.apps import TRAINER_KEY, flower_client_app
from fedpeft.wire.record import Content, content_of, record_of, server_message

__all__ = ["read_content", "write_content"]


def write_content(folder: Path, content: Content) -> None:
    """Write a record's parts, one file each."""
    for name, data in content._asdict().items():
        (folder / name).write_bytes(data)


def read_content(folder: Path) -> Content:
    """Read what write_content wrote."""
    return Content(*((folder / name).read_bytes() for name in Content._fields))


def main(folder: Path, trainer: str | None) -> None:
    """Answer the message."""
    kind = (folder / "kind").read_text()
    kept = ConfigRecord({"job": (folder / "job").read_text(), "plan": (folder / "plan").read_bytes()})
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"partition-id": 0, **({TRAINER_KEY: trainer} if trainer else {})},
        state=RecordDict({"run": kept}),
        run_config={"experiment": "e.toml"},
    )
    record = record_of(read_content(folder))
    message = server_message(record, message_type=kind, run=1, node=1, message_id="m", ttl=3600.0)
    reply = flower_client_app(folder)(message, context)
    if reply.has_error():
        sys.exit(reply.error.reason)
    write_content(folder / "reply", content_of(reply.content))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
