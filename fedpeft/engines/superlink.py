"""A SuperLink of our own for one simulation, on a free loopback port, gone when the block ends.

The one that ``flwr run`` starts by itself installs the app's dependencies anew before each run, and stays behind.
"""

import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedpeft.engines import operator, processes
from fedpeft.engines.operator import Operator
from fedpeft.errors import RunError
from fedpeft.files import ROOT_VARIABLE
from fedpeft.wire.failure import WORDS_VARIABLE

__all__ = ["await_health", "elsewhere", "free_port", "started", "tail"]

_START_SECONDS = 180.0
_LOG_CHARACTERS = 2000
_LONGEST_RAY_FOLDER = 40
"""Ray puts sockets below its folder, and the name of a socket has at most 107 bytes."""


@contextmanager
def started(folder: Path, *, modules: Path) -> Iterator[Operator]:
    """Start a SuperLink for simulations whose state lives in the folder; end it, and all it started, with the block.

    Where ``modules`` lies is searched first for what the apps import.

    Raises:
        RunError: it did not come up, or ended; shows the end of its log.
    """
    port = free_port()
    environment, log = _environment(folder, modules, port), folder / "superlink.log"
    command = [
        operator.script("flower-superlink"),
        *("--insecure", "--simulation", "--disable-runtime-dependency-installation"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    with processes.ended_by_sigterm():
        process = processes.start(command, environment=environment, folder=folder, log=log)

        def require_running() -> None:
            if (code := process.poll()) is not None:
                raise RunError(f"the SuperLink ended with exit code {code}; the end of its log:\n{tail(log)}")

        made = Operator(environment=environment, folder=folder, require_running=require_running)
        try:
            await_health(f"http://127.0.0.1:{port}/health", log, require_running)
            yield made
        finally:
            processes.end(process, name="FLWR_HOME", value=environment["FLWR_HOME"])


def _environment(folder: Path, modules: Path, port: int) -> dict[str, str]:
    """Return what all processes of the simulation see."""
    ray = folder / "ray"
    return {
        **elsewhere(operator.environment(folder / "flwr", f"127.0.0.1:{port}", certificates=None), modules),
        WORDS_VARIABLE: "tell",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        **({"RAY_TMPDIR": str(ray)} if len(str(ray)) <= _LONGEST_RAY_FOLDER else {}),
    }


def elsewhere(environment: Mapping[str, str], *modules: Path) -> dict[str, str]:
    """Return the environment of Flower's processes that run in another folder: relative paths are made absolute.

    Where ``modules`` lie is searched first.
    """
    return {
        **environment,
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        ROOT_VARIABLE: os.path.abspath(os.environ.get(ROOT_VARIABLE, "")),
        "PYTHONPATH": os.pathsep.join([*map(str, modules), *_search_path()]),
    }


def _search_path() -> list[str]:
    """Return the caller's search path in absolute words."""
    given = os.environ.get("PYTHONPATH", "")
    return [os.path.abspath(entry) for entry in given.split(os.pathsep)] if given else []


def await_health(
    url: str, log: Path, require_running: Callable[[], None], *, trust: ssl.SSLContext | None = None
) -> None:
    """Wait until a SuperLink answers.

    Raises:
        RunError: it does not, in time, or it ended.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        require_running()
        try:
            with urllib.request.urlopen(url, timeout=2, context=trust):  # noqa: S310 - http or https, of our own
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RunError(f"the SuperLink is not up after {_START_SECONDS:.0f} s; its log ends:\n{tail(log)}")


def tail(log: Path) -> str:
    """Return the end of a log."""
    return log.read_text(errors="replace")[-_LOG_CHARACTERS:]


def free_port() -> int:
    """Return a port of the loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
