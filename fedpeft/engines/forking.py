"""How worker processes are started: on Linux each is forked from one that has imported all they need, and waits."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext
from tempfile import gettempdir

from fedpeft.config import Compute, Simulation
from fedpeft.engines.sizing import likely_several

__all__ = ["begin", "context", "uninterrupted"]

_NEEDED = "fedpeft.engines.worker"
_LONGEST_FOLDER = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
"""Of what Linux allows in the path of a socket, what multiprocessing leaves."""


def begin(simulation: Simulation, compute: Compute) -> None:
    """Have the one that workers are forked from start importing, seconds of work, while this process does the same.

    It serves every run of this process and ends with it; if it has begun already nothing happens. Nothing is started
    where workers are not likely to be wanted.
    """
    if likely_several(simulation, compute) and isinstance(context(), ForkServerContext):
        with uninterrupted():
            forkserver.ensure_running()


def context() -> SpawnContext | ForkServerContext:
    """Return what starts processes.

    Elsewhere than on Linux each imports for itself: what macOS offers threads does not survive a fork. So it is where
    the folder of temporary files has too long a name for the socket over which a fork is asked for.
    """
    if sys.platform != "linux" or len(os.fsencode(gettempdir())) > _LONGEST_FOLDER:
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([_NEEDED])
    return found


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back; a process that is started inside never hears of it, and is ended by the one that does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
