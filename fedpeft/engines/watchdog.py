"""A process that Flower started for one message ends soon after nobody waits for its reply any more.

Flower has no limit of its own: a client app that hangs keeps its node, in this run and in later ones.
"""

import faulthandler
import sys
from pathlib import Path

from flwr.app import Message

__all__ = ["GRACE_SECONDS", "watched"]

GRACE_SECONDS = 5.0
_PROCESS = "flwr-clientapp"
"""What Flower's deployment starts for each message; in a simulation the process is not the message's alone."""


def watched(message: Message) -> bool:
    """End this process when the message's time and a little more are over; tell whether it is one that may be ended.

    The limit holds until the process ends, so it is also of handing over the reply. It needs no turn of the
    interpreter's, since a library may hang too; where each thread was is said on stderr, the node's own log.
    """
    if Path(sys.argv[0]).name != _PROCESS:
        return False
    faulthandler.dump_traceback_later(message.metadata.ttl + GRACE_SECONDS, exit=True)
    return True
