"""The same processes as containers: docker-compose files for a whole federation on one machine, and for each node.

Only the Fleet port is published: the SuperLink's own API has no authentication of its own, and whoever reaches it can
run code on every node. A client's executor has no network but the one to its SuperNode, and its trainer, which holds
the data, has none at all.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from fedpeft.deploy.topology import (
    APPLICATION,
    CA,
    CLIENT,
    EXECUTOR,
    NODE,
    OPERATOR,
    PINS,
    SERVER,
    SUPERLINK,
    TRAINER,
    Endpoint,
    Site,
    client_commands,
    machine_of,
    server_commands,
    server_environment,
)
from fedpeft.pinning.signed import SUFFIX
from fedpeft.wire.signature import PUBLIC

__all__ = ["FLEET_PORT", "client_file", "repository_file", "server_file", "site", "whole_file"]

FLEET_PORT, RUNTIME_PORT, NODE_PORT = 9092, 8000, 9094
REGISTER = "register"
_SOCKETS = "/run/fedpeft"
_TRAINER_READY = f"from fedpeft.trainer.health import require_ready; require_ready('unix://{_SOCKETS}/trainer.sock')"
_BUILD = {
    "fedpeft-server": {"context": ".", "dockerfile": "server/Dockerfile"},
    "fedpeft-client": {"context": ".", "dockerfile": "client/Dockerfile"},
}

Service = dict[str, Any]
Paths = Callable[[str], str]
"""Name of a secret -> path of its file on the machine, relative to the compose file."""


def site(server: str) -> Site:
    """Return addresses and paths inside containers; ``server`` is the name under which clients reach the SuperLink."""
    return Site(
        runtime=Endpoint(listen="0.0.0.0", reach=SUPERLINK, port=RUNTIME_PORT),  # noqa: S104 - its own network
        fleet=Endpoint(listen="0.0.0.0", reach=server, port=FLEET_PORT),  # noqa: S104 - what is published
        node=lambda client: Endpoint(listen="0.0.0.0", reach=NODE.format(client), port=NODE_PORT),  # noqa: S104
        secret=lambda name: f"/run/secrets/{name}",
        socket=lambda _: f"{_SOCKETS}/trainer.sock",
        kept=lambda _: "/app/state",
        database="/app/state/superlink.db",
    )


def whole_file(num_clients: int, paths: Paths, *, build: bool = False) -> str:
    """Return the file of a whole federation on one machine."""
    services = _server(num_clients)
    networks: dict[str, Any] = {"control": {"internal": True}, "fleet": {}}
    volumes: dict[str, Any] = {"state": {}, "runs": {}}
    for client in range(1, num_clients + 1):
        services |= _client(client, num_clients, server=SUPERLINK, beside_server=True)
        networks[f"node-{client}"] = {"internal": True}
        volumes |= _volumes(client)
    if build:
        services = {name: {**service, "build": _BUILD[service["image"]]} for name, service in services.items()}
    title = f"A federation of one server and {num_clients} clients on one machine."
    return _file(title, services, networks, volumes, paths)


def repository_file() -> str:
    """Return the repository's own docker-compose.yml, for what ``fedpeft deploy init deployment --clients 2`` makes."""
    return whole_file(2, lambda name: f"deployment/{machine_of(name)}/secrets/{name}", build=True)


def server_file(num_clients: int, paths: Paths) -> str:
    """Return the file of the server's machine."""
    networks = {"control": {"internal": True}, "fleet": {}}
    return _file("The server's machine.", _server(num_clients), networks, {"state": {}, "runs": {}}, paths)


def client_file(client: int, num_clients: int, server: str, paths: Paths) -> str:
    """Return the file of one client's machine."""
    services = _client(client, num_clients, server=server, beside_server=False)
    networks = {"fleet": {}, f"node-{client}": {"internal": True}}
    return _file(f"The machine of client {client}.", services, networks, _volumes(client), paths)


def _volumes(client: int) -> dict[str, Any]:
    return {f"socket-{client}": {}, f"kept-{client}": {}}


def _server(num_clients: int) -> dict[str, Service]:
    commands = server_commands(site(SUPERLINK))
    own = [CA, f"{SERVER}.crt", f"{SERVER}.key", "superexec-server"]
    keys = [f"node-{client}.pub" for client in range(1, num_clients + 1)]
    signing = [PUBLIC.format(client) for client in range(1, num_clients + 1)]
    register = ("fedpeft", "deploy", "register", f"--superlink={SUPERLINK}:{RUNTIME_PORT}")
    healthy = {"depends_on": {SUPERLINK: {"condition": "service_healthy"}}}
    return {
        SUPERLINK: _service(
            "fedpeft-server",
            commands[SUPERLINK],
            ["control", "fleet"],
            own,
            mem_limit="4g",
            ports=[f"{FLEET_PORT}:{FLEET_PORT}"],
            volumes=["state:/app/state"],
            healthcheck=_healthcheck(_listens(FLEET_PORT)),
        ),
        REGISTER: _service(
            "fedpeft-server",
            (*register, f"--root-certificates=/run/secrets/{CA}", *(f"/run/secrets/{key}" for key in keys)),
            ["control"],
            [CA, *keys],
            **healthy,
            mem_limit="1g",
            restart="on-failure",
        ),
        EXECUTOR: _service(
            "fedpeft-server",
            commands[EXECUTOR],
            ["control"],
            [CA, "superexec-server", *signing],
            environment=server_environment(site(SUPERLINK)),
            **healthy,
            mem_limit="8g",
            volumes=["runs:/app/runs"],
        ),
    }


def _client(client: int, num_clients: int, *, server: str, beside_server: bool) -> dict[str, Service]:
    commands, name = client_commands(site(server), client, num_clients), NODE.format(client)
    trainer, executor, socket = TRAINER.format(client), CLIENT.format(client), f"socket-{client}:{_SOCKETS}"
    waits, pins = {REGISTER: {"condition": "service_completed_successfully"}}, PINS.format(client)
    return {
        name: _service(
            "fedpeft-client",
            commands[name],
            ["fleet", f"node-{client}"],
            [CA, f"node-{client}", f"{name}.crt", f"{name}.key", f"superexec-{client}"],
            mem_limit="2g",
            healthcheck=_healthcheck(_listens(NODE_PORT)),
            **({"depends_on": waits} if beside_server else {}),
        ),
        trainer: _service(
            "fedpeft-client",
            commands[trainer],
            [],
            [APPLICATION.format(client), pins, f"{pins}{SUFFIX}", OPERATOR.format(client)],
            network_mode="none",
            mem_limit="8g",
            healthcheck=_healthcheck(_TRAINER_READY),
            volumes=[
                socket,
                f"kept-{client}:/app/state",
                f"${{CLIENT_{client}_DATA:-./data/client-{client}}}:/app/data:ro",
            ],
        ),
        executor: _service(
            "fedpeft-client",
            commands[executor],
            [f"node-{client}"],
            [CA, f"superexec-{client}"],
            mem_limit="2g",
            volumes=[socket],
            depends_on={name: {"condition": "service_healthy"}, trainer: {"condition": "service_healthy"}},
        ),
    }


def _listens(port: int) -> str:
    return f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)"


def _healthcheck(code: str) -> dict[str, Any]:
    """Ask a container's own Python."""
    test = ["CMD", "python", "-c", code]
    return {"test": test, "interval": "15s", "timeout": "10s", "retries": 6, "start_period": "30s"}


def _service(
    image: str,
    command: Iterable[str],
    networks: list[str],
    secrets: list[str],
    **more: Any,
) -> Service:
    """Return a container that may write nowhere but its volumes, and ask for nothing."""
    own: Mapping[str, str] = more.pop("environment", {})
    return {
        "image": image,
        "command": list(command),
        "restart": "unless-stopped",
        "stop_grace_period": "30s",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": ["/tmp"],  # noqa: S108 - inside the container
        "environment": {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_HOME": "/tmp/flwr",  # noqa: S108
            "HF_HUB_OFFLINE": "1",
            **own,
        },
        **({"networks": networks} if networks else {}),
        **({"secrets": secrets} if secrets else {}),
        **more,
    }


def _file(
    title: str, services: Mapping[str, Service], networks: Mapping[str, Any], volumes: Mapping[str, Any], paths: Paths
) -> str:
    secrets = list(dict.fromkeys(name for service in services.values() for name in service.get("secrets", ())))
    table: dict[str, Any] = {"services": dict(services), "networks": dict(networks)}
    table |= {"volumes": dict(volumes)} if volumes else {}
    table["secrets"] = {name: {"file": paths(name)} for name in secrets}
    text = yaml.dump(table, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return f"# {title} Written by `fedpeft deploy`; docs/how-to-deploy.md says what is what.\n{text}"


class _Dumper(yaml.SafeDumper):
    """Writes each value in full, where it stands."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
