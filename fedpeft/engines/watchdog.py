"""A process that Flower started for one message ends soon after nobody waits for its reply any more.

Flower has no limit of its own: a client app that hangs keeps its node, in this run and in later ones.
"""

import faulthandler
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Message

__all__ = ["GRACE_SECONDS", "watched"]

GRACE_SECONDS = 5.0
_PROCESS = "flwr-clientapp"
"""What Flower's deployment starts for each message; in a simulation the process is not the message's alone."""


@contextmanager
def watched(message: Message) -> Iterator[None]:
    """End this process if the block lasts longer than the message's time and a little more.

    It needs no turn of the interpreter's, since a library may hang too; where each thread was is said on stderr, the
    node's own log. Handing over the reply is not watched: a SuperNode waits for the rest of one for ever, so a process
    that ends there takes its node along.
    """
    if Path(sys.argv[0]).name != _PROCESS:
        yield
        return
    faulthandler.dump_traceback_later(message.metadata.ttl + GRACE_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
