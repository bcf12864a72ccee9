"""A deployment's processes on this machine alone: what its containers run, on free ports of the loopback.

TLS, keys and the database are as in containers. What the processes leave behind lies in DIR/local: the database, logs,
each one's own Flower folder, and the operator's connection, by which ``fedpeft deploy run`` finds them.
"""

import importlib.metadata
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

from packaging.version import Version

from fedpeft.deploy.init import Deployment
from fedpeft.deploy.register import await_online, register
from fedpeft.deploy.topology import (
    CA,
    EXECUTOR,
    SUPERLINK,
    TRAINER,
    Command,
    Endpoint,
    Site,
    client_commands,
    server_commands,
    server_environment,
)
from fedpeft.engines import operator, processes
from fedpeft.engines.operator import Operator
from fedpeft.engines.superlink import await_health, elsewhere, free_port, tail
from fedpeft.errors import RunError
from fedpeft.files import locked

__all__ = ["Local", "home", "one_port", "site", "up"]

_START_SECONDS = 180.0
_MARK = "FEDPEFT_DEPLOYMENT"
"""Environment variable that only these processes have, by which all that they started are found."""


def home(deployment: Deployment) -> Path:
    """Return the operator's Flower folder."""
    return deployment.folder.resolve() / "local" / "operator"


def site(deployment: Deployment, sockets: Path) -> Site:
    """Return addresses and paths of processes on this machine, on ports that are free now.

    Sockets lie apart: their names have at most 107 bytes, and a deployment's folder may be anywhere.
    """
    kept, runtime = deployment.folder.resolve() / "local", _endpoint()
    return Site(
        runtime=runtime,
        fleet=runtime if one_port(importlib.metadata.version("flwr")) else _endpoint(),
        node=cache(lambda _: _endpoint()),
        secret=lambda name: str(deployment.secret(name)),
        socket=lambda client: str(sockets / f"{client}.sock"),
        kept=lambda client: str(kept / TRAINER.format(client)),
        database=str(kept / "superlink.db"),
    )


def one_port(flwr: str) -> bool:
    """Tell whether this version of flwr answers SuperNodes on the SuperLink's own port, as all do from 1.40 on.

    Only ``make compat`` meets one: containers are not made for it, since that port has no authentication.
    """
    return Version(flwr) >= Version("1.40")


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
                log = self.logs / f"{name}.log"
                raise RunError(f"{name} ended with exit code {code}; the end of {log}:\n{tail(log)}")


@contextmanager
def up(deployment: Deployment, *, say: Callable[[str], None] = lambda _: None) -> Iterator[Local]:
    """Start a deployment's processes, admit its clients, wait until all are there; end all with the block.

    Raises:
        InputError: it is up already.
        RunError: a process ended, or was not ready in time.
    """
    folder = deployment.folder.resolve() / "local"
    folder.mkdir(parents=True, exist_ok=True)
    alone = locked(folder / "lock", refusal=f"{deployment.folder.resolve()}: is up already; end that one first")
    with alone, processes.ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="fedpeft-") as sockets:
        where = site(deployment, Path(sockets))
        environment = operator.environment(home(deployment), where.runtime.address, certificates=deployment.secret(CA))
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
    trust = ssl.create_default_context(cafile=str(deployment.secret(CA)))
    health = f"https://{where.runtime.address}/health"
    await_health(health, local.logs / f"{SUPERLINK}.log", local.require_running, trust=trust)
    say(f"superlink is up at {where.runtime.address}, for clients at {where.fleet.address}")
    register(local.operator, [deployment.secret(f"node-{client}.pub") for client in range(1, count + 1)])
    clients = [client_commands(where, client, count) for client in range(1, count + 1)]
    for commands in (server, *clients):
        own = {EXECUTOR: server_environment(where)}
        started |= {name: _start(name, command, local, own.get(name)) for name, command in commands.items()}
        for name in commands:
            say(f"{name} started, process {started[name].pid}")
    await_online(local.operator, count, seconds=_START_SECONDS, require_running=local.require_running)
    say(f"{count} clients are online")


def _start(
    name: str, command: Command, local: Local, own: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    local.logs.mkdir(parents=True, exist_ok=True)
    folder = local.operator.folder
    environment = {**elsewhere(operator.inherited(folder / name)), _MARK: str(folder), **(own or {})}
    program = [operator.script(command[0]), *command[1:]]
    return processes.start(program, environment=environment, folder=folder, log=local.logs / f"{name}.log")
