"""A SuperLink of our own for one simulation, on a free loopback port, gone when the block ends.

The one that ``flwr run`` starts by itself installs the app's dependencies anew before each run, and stays behind.
"""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpeft.engines import operator, processes
from fedpeft.engines.operator import Operator
from fedpeft.errors import RunError
from fedpeft.files import ROOT_VARIABLE

__all__ = ["absolute_search_path", "free_port", "started"]

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
    with log.open("wb") as file, processes.ended_by_sigterm():
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def require_running() -> None:
            if (code := process.poll()) is not None:
                raise RunError(f"the SuperLink ended with exit code {code}; the end of its log:\n{_tail(log)}")

        made = Operator(environment=environment, folder=folder, require_running=require_running)
        try:
            _await_health(made, log, port)
            yield made
        finally:
            processes.end(process, name="FLWR_HOME", value=environment["FLWR_HOME"])


def _environment(folder: Path, modules: Path, port: int) -> dict[str, str]:
    """Return what all processes of the simulation see; they run in the folder, so relative paths are made absolute."""
    ray = folder / "ray"
    return {
        **operator.environment(folder / "flwr", f"127.0.0.1:{port}", certificates=None),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        **({"RAY_TMPDIR": str(ray)} if len(str(ray)) <= _LONGEST_RAY_FOLDER else {}),
        ROOT_VARIABLE: os.path.abspath(os.environ.get(ROOT_VARIABLE, "")),
        "PYTHONPATH": os.pathsep.join([str(modules), *absolute_search_path()]),
    }


def absolute_search_path() -> list[str]:
    """Return the caller's search path in absolute words."""
    given = os.environ.get("PYTHONPATH", "")
    return [os.path.abspath(entry) for entry in given.split(os.pathsep)] if given else []


def _await_health(made: Operator, log: Path, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        made.require_running()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RunError(f"the SuperLink is not up after {_START_SECONDS:.0f} s; its log ends:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_LOG_CHARACTERS:]


def free_port() -> int:
    """Return a port of the loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
