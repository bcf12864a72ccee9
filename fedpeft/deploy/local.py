"""A deployment's processes on this machine alone: what its containers run, on free ports of the loopback.

TLS, keys and the database are as in containers. What the processes leave behind lies in DIR/local: the database, logs,
each one's own Flower folder, and the operator's connection, by which ``fedpeft deploy run`` finds them.
"""

import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

from fedpeft.deploy.init import Deployment
from fedpeft.deploy.register import await_online, register
from fedpeft.deploy.topology import CA, SUPERLINK, Command, Endpoint, Site, client_commands, server_commands
from fedpeft.engines import operator, processes
from fedpeft.engines.operator import Operator
from fedpeft.engines.superlink import absolute_search_path, free_port
from fedpeft.errors import InputError, RunError
from fedpeft.files import ROOT_VARIABLE

__all__ = ["Local", "home", "site", "up"]

_START_SECONDS = 180.0
_PAUSE_SECONDS = 0.3
_LOG_CHARACTERS = 2000
_MARK = "FEDPEFT_DEPLOYMENT"
"""Environment variable that only these processes have, by which all that they started are found."""


def home(deployment: Deployment) -> Path:
    """Return the operator's Flower folder."""
    return deployment.folder.resolve() / "local" / "operator"


def site(deployment: Deployment) -> Site:
    """Return addresses and paths of processes on this machine, on ports that are free now."""
    return Site(
        runtime=_endpoint(),
        fleet=_endpoint(),
        node=cache(lambda _: _endpoint()),
        secret=lambda name: str(deployment.secret(name).resolve()),
        database=str(deployment.folder.resolve() / "local" / "superlink.db"),
    )


def _endpoint() -> Endpoint:
    return Endpoint(listen="127.0.0.1", reach="127.0.0.1", port=free_port())


@final
@dataclass(frozen=True, kw_only=True)
class Local:
    """Processes that run."""

    operator: Operator
    processes: Mapping[str, "subprocess.Popen[bytes]"]
    """Service -> process."""
    logs: Path

    def require_running(self) -> None:
        """Refuse to go on once one of them has ended.

        Raises:
            RunError: names it and shows the end of its log.
        """
        for name, process in self.processes.items():
            if (code := process.poll()) is not None:
                end = (self.logs / f"{name}.log").read_text(errors="replace")[-_LOG_CHARACTERS:]
                raise RunError(f"{name} ended with exit code {code}; the end of {self.logs / name}.log:\n{end}")


@contextmanager
def up(deployment: Deployment, *, say: Callable[[str], None] = lambda _: None) -> Iterator[Local]:
    """Start a deployment's processes, admit its clients, wait until all are there; end all with the block.

    Raises:
        InputError: it is up already.
        RunError: a process ended, or was not ready in time.
    """
    where, folder = site(deployment), deployment.folder.resolve() / "local"
    with _alone(folder), processes.ended_by_sigterm():
        environment = operator.environment(
            home(deployment), where.runtime.address, certificates=deployment.secret(CA).resolve()
        )
        started: dict[str, subprocess.Popen[bytes]] = {}
        local = Local(
            operator=Operator(environment=environment, folder=folder), processes=started, logs=folder / "logs"
        )
        try:
            _bring_up(deployment, where, local, started, say)
            yield local
        finally:
            (home(deployment) / "config.toml").unlink(missing_ok=True)
            processes.end_all(started.values(), name=_MARK, value=str(folder))


def _bring_up(
    deployment: Deployment,
    where: Site,
    local: Local,
    started: dict[str, "subprocess.Popen[bytes]"],
    say: Callable[[str], None],
) -> None:
    """Start the server, admit the keys, then start the clients: a node whose key is not known ends itself."""
    server, count = server_commands(where), deployment.num_clients
    started[SUPERLINK] = _start(SUPERLINK, server.pop(SUPERLINK), local)
    _await_health(where, deployment, local)
    say(f"superlink is up at {where.runtime.address}, for clients at {where.fleet.address}")
    register(local.operator, [deployment.secret(f"node-{client}.pub") for client in range(1, count + 1)])
    clients = [client_commands(where, client, count) for client in range(1, count + 1)]
    for commands in (server, *clients):
        started |= {name: _start(name, command, local) for name, command in commands.items()}
        for name in commands:
            say(f"{name} started, process {started[name].pid}")
    await_online(local.operator, count, seconds=_START_SECONDS, require_running=local.require_running)
    say(f"{count} clients are online")


def _start(name: str, command: Command, local: Local) -> "subprocess.Popen[bytes]":
    local.logs.mkdir(parents=True, exist_ok=True)
    folder = local.operator.folder
    environment = {
        **os.environ,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "FLWR_HOME": str(folder / name),
        "PATH": local.operator.environment["PATH"],
        "PYTHONPATH": os.pathsep.join(absolute_search_path()),
        ROOT_VARIABLE: os.path.abspath(os.environ.get(ROOT_VARIABLE, "")),
        _MARK: str(folder),
    }
    with (local.logs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [operator.script(command[0]), *command[1:]],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_health(where: Site, deployment: Deployment, local: Local) -> None:
    trusted = ssl.create_default_context(cafile=str(deployment.secret(CA)))
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        local.require_running()
        try:
            with urllib.request.urlopen(f"https://{where.runtime.address}/health", timeout=2, context=trusted):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_PAUSE_SECONDS)
    raise RunError(f"the SuperLink is not up after {_START_SECONDS:.0f} s; see {local.logs / SUPERLINK}.log")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one ``up`` at a time have the folder; the kernel gives the lock back however it ends."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{folder.parent}: is up already; end that one first") from error
        yield
