"""Which processes a federation is made of, and the command line of each: said once, for containers and for processes.

A SuperLink passes messages and keeps them in a database; beside it an executor runs the server's half. Each client has
a SuperNode, which holds its key and talks to the server, an executor, which starts a process for each message, and a
trainer, which holds data and model and which that process asks over a socket. All talk TLS; a node is admitted by its
key, an executor by a secret that it shares with its own SuperLink or SuperNode alone. The flags are those of flwr 1.39.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import final

from fedpeft.engines.apps import KEYS_VARIABLE
from fedpeft.wire.signature import PUBLIC

__all__ = [
    "APPLICATION",
    "CA",
    "CLIENT",
    "EXECUTOR",
    "NODE",
    "OPERATOR",
    "PINS",
    "SERVER",
    "SUPERLINK",
    "TRAINER",
    "Endpoint",
    "Site",
    "client_commands",
    "machine_of",
    "server_commands",
    "server_environment",
]

SUPERLINK, EXECUTOR = "superlink", "superexec-server"
NODE, TRAINER, CLIENT = "supernode-{}", "trainer-{}", "superexec-client-{}"
"""Names of services; the latter of a client, counted from 1."""
SERVER, CA = "server", "ca.crt"
"""Names of secrets: what the certificate and the key of the SuperLink begin with, and who signed them."""
PINS, OPERATOR = "pins-{}.toml", "operator-{}.pub"
"""Names of what lies beside a client's secrets: what its trainer takes part in, and whose signature that has."""

APPLICATION = "application-{}"
"""Name of the secret by which a client signs its replies; its public half is a file of the server's."""

_OWN = re.compile(
    r"(?:node|supernode|superexec|application)-(\d+)(?:\.crt|\.key)?|(?:pins|operator)-(\d+)\.(?:toml|toml\.sig|pub)"
)
"""Names of secrets that one client alone has."""

Command = tuple[str, ...]


def machine_of(secret: str) -> str:
    """Return whose machine a secret is on: ``server``, or ``client-K``; the authority's certificate is on each."""
    own = _OWN.fullmatch(secret)
    return f"client-{own[1] or own[2]}" if own else SERVER


@final
@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a service listens, and where others reach it."""

    listen: str
    reach: str
    port: int

    @property
    def address(self) -> str:
        """HOST:PORT for those who connect."""
        return f"{self.reach}:{self.port}"


@final
@dataclass(frozen=True, kw_only=True)
class Site:
    """What differs between containers and processes: addresses and paths."""

    runtime: Endpoint
    """The SuperLink's own API, for its executor and the operator: no one else may reach it."""
    fleet: Endpoint
    """What SuperNodes connect to, over gRPC."""
    node: Callable[[int], Endpoint]
    """The API of each client's SuperNode, for its executor alone."""
    secret: Callable[[str], str]
    """Name of a secret -> path of the file."""
    socket: Callable[[int], str]
    """Path of each client's trainer's socket, in a folder that its owner alone can enter."""
    kept: Callable[[int], str]
    """Path of the folder where each client's trainer keeps what must survive it."""
    database: str
    """Path of the SuperLink's database, without which a restart forgets who is registered and what is under way."""


def server_commands(site: Site) -> dict[str, Command]:
    """Return service -> command line of the server's side."""
    superlink = (
        "flower-superlink",
        f"--host={site.runtime.listen}",
        f"--port={site.runtime.port}",
        f"--fleet-api-address={site.fleet.listen}:{site.fleet.port}",
        *_tls(site, SERVER),
        "--enable-supernode-auth",
        f"--database={site.database}",
        *_isolated(site, "server"),
        "--disable-runtime-dependency-installation",
    )
    return {SUPERLINK: superlink, EXECUTOR: _executor(site, site.runtime, "server")}


def server_environment(site: Site) -> dict[str, str]:
    """Return what the server's executor, and so the server's half, has in its environment: whose replies it takes."""
    return {KEYS_VARIABLE: str(PurePosixPath(site.secret(PUBLIC.format(1))).parent)}


def client_commands(site: Site, client: int, num_clients: int) -> dict[str, Command]:
    """Return service -> command line of one client's side; clients count from 1, partitions from 0."""
    own, name, address = site.node(client), NODE.format(client), f"unix://{site.socket(client)}"
    supernode = (
        "flower-supernode",
        f"--superlink={site.fleet.address}",
        f"--root-certificates={site.secret(CA)}",
        f"--auth-supernode-private-key={site.secret(f'node-{client}')}",
        f'--node-config=partition-id={client - 1} num-partitions={num_clients} trainer="{address}"',
        f"--host={own.listen}",
        f"--port={own.port}",
        *_tls(site, name),
        *_isolated(site, str(client)),
    )
    trainer = (
        "fedpeft",
        "trainer",
        f"--listen={address}",
        f"--state={site.kept(client)}",
        f"--application-key={site.secret(APPLICATION.format(client))}",
        f"--pins={site.secret(PINS.format(client))}",
        f"--pins-key={site.secret(OPERATOR.format(client))}",
    )
    return {name: supernode, TRAINER.format(client): trainer, CLIENT.format(client): _executor(site, own, str(client))}


def _tls(site: Site, name: str) -> Command:
    return (
        f"--ssl-ca-certfile={site.secret(CA)}",
        f"--ssl-certfile={site.secret(f'{name}.crt')}",
        f"--ssl-keyfile={site.secret(f'{name}.key')}",
    )


def _isolated(site: Site, whose: str) -> Command:
    return ("--isolation=process", f"--superexec-auth-secret-file={site.secret(f'superexec-{whose}')}")


def _executor(site: Site, served: Endpoint, whose: str) -> Command:
    return (
        "flower-superexec",
        f"--runtime-api-address={served.address}",
        f"--root-certificates={site.secret(CA)}",
        f"--superexec-auth-secret-file={site.secret(f'superexec-{whose}')}",
    )
