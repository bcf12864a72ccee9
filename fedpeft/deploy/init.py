"""A new deployment: one folder to keep, one for the server's machine, one to hand to each client.

DIR/federation.toml                 what was asked for
DIR/docker-compose.yml              all of it on one machine
DIR/authority/ca.key                signs certificates; keep it off the machines that run the federation
DIR/authority/operator.key          signs what clients take part in; keep it off them too
DIR/server/, DIR/client-K/          docker-compose.yml and secrets/ of one machine each
"""

import ipaddress
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import tomli_w

from fedpeft.deploy import compose
from fedpeft.deploy.identity import (
    make_authority,
    write_application_key,
    write_authority,
    write_certificate,
    write_node_key,
    write_operator_key,
    write_public,
    write_secret,
)
from fedpeft.deploy.topology import APPLICATION, CA, NODE, OPERATOR, PINS, SERVER, SUPERLINK, machine_of
from fedpeft.errors import InputError
from fedpeft.pinning.manifest import open_text, parse
from fedpeft.pinning.signed import write_signed
from fedpeft.wire.signature import PUBLIC

__all__ = ["Deployment", "init", "pin", "read"]

_MANIFEST, _FORMAT = "federation.toml", 1
_LOCAL = ("localhost", "127.0.0.1")
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


@final
@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A folder that ``init`` made."""

    folder: Path
    host: str
    num_clients: int

    def secret(self, name: str) -> Path:
        """Return where a secret lies, from the root: with the one machine that needs it.

        Raises:
            InputError: it is not there.
        """
        path = self.folder / machine_of(name) / "secrets" / name
        if not path.is_file():
            raise InputError(f"{path}: missing; it cannot be made anew, so restore it, or make another deployment")
        return path.resolve()


def init(folder: Path, *, num_clients: int, host: str) -> Deployment:
    """Write a new deployment.

    Raises:
        InputError: the folder is in use, or the host is no name and no address.
    """
    _require(folder, num_clients, host)
    deployment = Deployment(folder=folder, host=host, num_clients=num_clients)
    _identities(deployment)
    pin(deployment, open_text())
    for client in range(1, num_clients + 1):
        text = compose.client_file(client, num_clients, host, lambda name: f"secrets/{name}")
        write_public(folder / f"client-{client}" / "docker-compose.yml", text.encode())
    text = compose.server_file(num_clients, lambda name: f"secrets/{name}")
    write_public(folder / SERVER / "docker-compose.yml", text.encode())
    whole = compose.whole_file(num_clients, lambda name: f"{machine_of(name)}/secrets/{name}")
    write_public(folder / "docker-compose.yml", whole.encode())
    told = {"format": _FORMAT, "host": host, "num_clients": num_clients}
    write_public(folder / _MANIFEST, tomli_w.dumps(told).encode())
    return deployment


def read(folder: Path) -> Deployment:
    """Return what ``init`` made there.

    Raises:
        InputError: nothing, or of another format.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: no deployment there: it has no {_MANIFEST}; make one with fedpeft deploy init")
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        if told["format"] != _FORMAT:
            raise ValueError(f"format {told['format']}, expected {_FORMAT}")
        return Deployment(folder=folder, host=str(told["host"]), num_clients=int(told["num_clients"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged: {error}") from error


def _require(folder: Path, num_clients: int, host: str) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: in use; keys are never written over, name another folder")
    if num_clients < 1:
        raise InputError(f"--clients = {num_clients}: expected at least 1")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if _HOST.fullmatch(host) is None:
            raise InputError(f"--host = {host!r}: expected a host name or an address, without a port") from None


def _identities(deployment: Deployment) -> None:
    """Write every key, certificate and secret into the folder of who needs it."""
    folder, server = deployment.folder, deployment.folder / SERVER / "secrets"
    machines = [folder / f"client-{client}" / "secrets" for client in range(1, deployment.num_clients + 1)]
    authority = make_authority("fedpeft-authority")
    write_authority(
        authority, key=folder / "authority" / "ca.key", certificates=[secrets / CA for secrets in (server, *machines)]
    )
    write_certificate(authority, server, SERVER, list(dict.fromkeys((SUPERLINK, *_LOCAL, deployment.host))))
    write_secret(server / "superexec-server")
    for client, secrets in enumerate(machines, 1):
        write_certificate(authority, secrets, NODE.format(client), (NODE.format(client), *_LOCAL))
        write_node_key(secrets / f"node-{client}", server / f"node-{client}.pub")
        write_application_key(secrets / APPLICATION.format(client), server / PUBLIC.format(client))
        write_secret(secrets / f"superexec-{client}")
    operators = [secrets / OPERATOR.format(client) for client, secrets in enumerate(machines, 1)]
    write_operator_key(_operator(folder), operators)


def pin(deployment: Deployment, manifest: str) -> list[Path]:
    """Sign a manifest for each client and put it beside the client's secrets; return where they lie.

    Raises:
        InputError: it is no manifest, or the operator's key is not there.
    """
    parse(manifest, where="manifest")
    clients = range(1, deployment.num_clients + 1)
    paths = [deployment.folder / f"client-{client}" / "secrets" / PINS.format(client) for client in clients]
    for path in paths:
        write_signed(path, manifest, _operator(deployment.folder))
    return paths


def _operator(folder: Path) -> Path:
    return folder / "authority" / "operator.key"
