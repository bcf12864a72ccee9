"""A SuperLink of our own for one simulation, on a free loopback port, gone when the block ends.

The one that ``flwr run`` starts by itself installs the app's dependencies anew before each run, and stays behind.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fedpeft.engines import processes
from fedpeft.errors import RunError
from fedpeft.files import ROOT_VARIABLE

__all__ = ["Status", "SuperLink", "started"]

_START_SECONDS = 180.0
_CALL_SECONDS = 180.0
_LOG_CHARACTERS = 2000
_LONGEST_RAY_FOLDER = 40
"""Ray puts sockets below its folder, and the name of a socket has at most 107 bytes."""


@final
@dataclass(frozen=True)
class Status:
    """Where a run stands."""

    text: str
    """For example ``running`` or ``finished:completed``."""
    details: str
    """Why it failed; empty where Flower says nothing."""


@final
@dataclass(frozen=True, kw_only=True)
class SuperLink:
    """A running SuperLink, and the ``flwr`` command pointed at it."""

    process: "subprocess.Popen[bytes]"
    environment: dict[str, str]
    log: Path

    def run(self, bundle: Path, *, federation_config: str) -> int:
        """Submit a bundle and return the run's number."""
        return int(self._flwr("run", str(bundle), "local", "--federation-config", federation_config)["run-id"])

    def status(self, run: int) -> Status:
        """Return the run's status. This starts a process, and takes a second of its time."""
        row = self._flwr("list", "local", "--run-id", str(run))["runs"][0]
        details = str(row.get("status-details") or "")
        return Status(str(row["status"]), "" if details == "N/A" else details)

    def output(self, run: int) -> str:
        """Return what the run's apps logged."""
        return self._call("log", str(run), "local", "--show").stdout

    def require_running(self) -> None:
        """Refuse to go on with a SuperLink that has ended by itself.

        Raises:
            RunError: shows the end of its log.
        """
        if (code := self.process.poll()) is not None:
            raise RunError(f"the SuperLink ended with exit code {code}; the end of its log:\n{_tail(self.log)}")

    def _call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        self.require_running()
        command = [_script("flwr"), *arguments]
        folder = self.log.parent
        try:
            return subprocess.run(
                command,
                env=self.environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_CALL_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"flwr {arguments[0]} gave no answer within {_CALL_SECONDS:.0f} s") from error

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        done = self._call(*arguments, "--format", "json")
        start = done.stdout.find("{")
        try:
            answer = dict(json.loads(done.stdout[start:])) if start >= 0 else {}
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success"):
            self.require_running()
            said = str(answer.get("error-message") or done.stderr or done.stdout).strip()
            raise RunError(f"flwr {arguments[0]} failed: {said}")
        return answer


@contextmanager
def started(folder: Path, *, modules: Path) -> Iterator[SuperLink]:
    """Start a SuperLink for simulations whose state lives in the folder; end it, and all it started, with the block.

    Where ``modules`` lies is searched first for what the apps import.

    Raises:
        RunError: it did not come up, or ended; shows the end of its log.
    """
    port = _free_port()
    environment, log = _environment(folder, modules, port), folder / "superlink.log"
    command = [
        _script("flower-superlink"),
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
        superlink = SuperLink(process=process, environment=environment, log=log)
        try:
            _await_health(superlink, port)
            yield superlink
        finally:
            processes.end(process, name="FLWR_HOME", value=environment["FLWR_HOME"])


def _environment(folder: Path, modules: Path, port: int) -> dict[str, str]:
    """Return what all processes of the simulation see; they run in the folder, so relative paths are made absolute."""
    home = folder / "flwr"
    home.mkdir(parents=True)
    connection = f'[superlink]\ndefault = "local"\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection)
    ray = folder / "ray"
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        **({"RAY_TMPDIR": str(ray)} if len(str(ray)) <= _LONGEST_RAY_FOLDER else {}),
        ROOT_VARIABLE: os.path.abspath(os.environ.get(ROOT_VARIABLE, "")),
        "PYTHONPATH": os.pathsep.join([str(modules), *_python_path()]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _python_path() -> list[str]:
    """Return the caller's search path in absolute words."""
    given = os.environ.get("PYTHONPATH", "")
    return [os.path.abspath(entry) for entry in given.split(os.pathsep)] if given else []


def _await_health(superlink: SuperLink, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        superlink.require_running()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RunError(f"the SuperLink is not up after {_START_SECONDS:.0f} s; its log ends:\n{_tail(superlink.log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_LOG_CHARACTERS:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)
