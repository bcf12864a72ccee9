"""One Flower message in a process of its own, as Flower starts one.

    python -m benchmarks._one_message FOLDER BEGAN [ADDRESS]

The folder holds the app's bundle, the message and what the node keeps; the reply is written there, with the seconds of
each part of the process's life since BEGAN, the time at which it was started.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

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


def main(folder: Path, began: float, trainer: str | None) -> None:
    """Answer the message."""
    spans = {"start": time.time() - began}
    if trainer is None:
        prepare(spans)
    begun = time.time()
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
    spans["answer"] = time.time() - begun - spans.get("data and model", 0.0)
    write_content(folder / "reply", content_of(reply.content))
    (folder / "reply" / "spans").write_text(json.dumps({**spans, "ended": time.time()}))


def prepare(spans: dict[str, float]) -> None:
    """Import what trains, and have the reading of data and model timed."""
    begun = time.time()
    import fedpeft.client  # noqa: F401 - what the app imports when it is asked
    from fedpeft.training import workbench

    spans["libraries"], own = time.time() - begun, workbench.assemble

    def assemble(*arguments: Any, **options: Any) -> Any:
        begun = time.time()
        try:
            return own(*arguments, **options)
        finally:
            spans["data and model"] = time.time() - begun

    workbench.assemble = assemble


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
