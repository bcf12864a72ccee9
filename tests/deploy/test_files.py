"""A new deployment: who has which secret, what certificates say, and that all files name the same commands."""

import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from fedpeft.cli import app
from fedpeft.deploy import compose, local
from fedpeft.deploy.init import Deployment, init, pin, read
from fedpeft.deploy.topology import client_commands, machine_of, server_commands, server_environment
from fedpeft.errors import InputError, WireError
from fedpeft.pinning.signed import read_pins
from fedpeft.wire.record import Content, record_of
from fedpeft.wire.signature import read_keys, read_signer
from tests.pinning.manifests import PINNED

ROOT = Path(__file__).parents[2]
PATH = re.compile(
    r"\"?unix://[^\"\s]+\"?|(?<=--state=)\S+|(?<==)\S*/|127\.0\.0\.1:\d+|0\.0\.0\.0:\d+|[a-z0-9-]+:\d+|0\.0\.0\.0|127\.0\.0\.1|(?<=port=)\d+"
)
"""What may differ between a container's command and a process's: folders, addresses, ports."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return init(tmp_path_factory.mktemp("made") / "new", num_clients=3, host="fed.example.org")


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["services"]
    return found


def certificates(made: Deployment) -> Iterator[tuple[Path, x509.Certificate]]:
    for path in made.folder.rglob("*.crt"):
        yield path, x509.load_pem_x509_certificate(path.read_bytes())


def test_each_machine_has_its_own_secrets_and_no_other(made: Deployment) -> None:
    held = {
        machine.name: sorted(path.name for path in (machine / "secrets").iterdir())
        for machine in made.folder.iterdir()
        if (machine / "secrets").is_dir()
    }
    assert held == {
        "server": [
            "application-1.pub",
            "application-2.pub",
            "application-3.pub",
            "ca.crt",
            "node-1.pub",
            "node-2.pub",
            "node-3.pub",
            "server.crt",
            "server.key",
            "superexec-server",
        ],
        **{
            f"client-{k}": [
                *(f"application-{k}", "ca.crt", f"node-{k}"),
                *(f"operator-{k}.pub", f"pins-{k}.toml", f"pins-{k}.toml.sig"),
                *(f"superexec-{k}", f"supernode-{k}.crt", f"supernode-{k}.key"),
            ]
            for k in (1, 2, 3)
        },
    }
    assert sorted(path.name for path in (made.folder / "authority").iterdir()) == ["ca.key", "operator.key"]


def test_private_files_are_their_owners_alone_and_secrets_differ(made: Deployment) -> None:
    named = re.compile(r"\.key$|(node|application)-\d$|superexec-")
    private = [path for path in made.folder.rglob("*") if path.is_file() and named.search(path.name)]
    assert len(private) == 2 + 2 + 3 * 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert len({path.read_bytes() for path in private}) == len(private)


def test_certificates_are_signed_by_the_one_authority_and_name_their_service(made: Deployment) -> None:
    found = dict(certificates(made))
    authority = next(certificate for path, certificate in found.items() if path.name == "ca.crt")
    assert len({certificate.serial_number for path, certificate in found.items() if path.name == "ca.crt"}) == 1
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    names = {}
    for path, certificate in found.items():
        certificate.verify_directly_issued_by(authority)
        assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=1)
        assert certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=300)
        if path.name != "ca.crt":
            assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names[path.stem] = [str(name.value) for name in alternative]
    assert names["server"] == ["superlink", "localhost", "127.0.0.1", "fed.example.org"]
    assert names["supernode-2"] == ["supernode-2", "localhost", "127.0.0.1"]


def test_the_two_halves_of_a_nodes_key_belong_together(made: Deployment) -> None:
    private = serialization.load_ssh_private_key(made.secret("node-2").read_bytes(), None)
    public = serialization.load_ssh_public_key(made.secret("node-2.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.public_key().public_numbers() == public.public_numbers()
    assert private.curve.name == "secp384r1"


def test_the_two_halves_of_an_application_key_belong_together_and_only_the_server_has_the_public_ones(
    made: Deployment,
) -> None:
    here = local.site(made, Path("/x"))
    keys = read_keys(Path(server_environment(here)["FEDPEFT_CLIENT_KEYS"]))
    assert set(keys.by_client) == {0, 1, 2}
    record = record_of(Content(b"header", b"checksum", b"body"))
    for client in (0, 1, 2):
        signed = read_signer(made.secret(f"application-{client + 1}")).signed(record)
        keys.require(client, signed)
        with pytest.raises(WireError, match="not this client's"):
            keys.require((client + 1) % 3, signed)


def test_containers_and_processes_have_the_same_commands(made: Deployment) -> None:
    here = local.site(made, Path("/x"))
    plain = dict(server_commands(here))
    for client in (1, 2, 3):
        plain |= client_commands(here, client, 3)
    contained = services(made.folder / "docker-compose.yml")
    assert {*plain, "register"} == set(contained)
    for name, command in plain.items():
        ours, theirs = ([PATH.sub("*", word) for word in words] for words in (command, contained[name]["command"]))
        assert ours == theirs
    assert "partition-id=2 num-partitions=3 trainer=" in contained["supernode-3"]["command"][4]


def test_every_secret_that_a_file_names_is_there_and_no_container_has_anothers(made: Deployment) -> None:
    for path in made.folder.rglob("docker-compose.yml"):
        table = yaml.safe_load(path.read_text())
        for name, secret in table["secrets"].items():
            assert (path.parent / secret["file"]).is_file(), (path, name)
        for name, service in table["services"].items():
            if name.startswith("trainer"):
                k = name[-1]
                pinned = [f"pins-{k}.toml", f"pins-{k}.toml.sig", f"operator-{k}.pub"]
                assert service["secrets"] == [f"application-{k}", *pinned]
            own = {machine_of(secret) for secret in service["secrets"] if secret != "ca.crt"}
            assert own == {f"client-{name[-1]}" if name[-1].isdigit() else "server"}
            assert set(service["secrets"]) <= set(table["secrets"])
            used = set(re.findall(r"/run/secrets/(\S+)", " ".join(service["command"])))
            used |= {f"{manifest}.sig" for manifest in used if manifest.startswith("pins-")}
            if service["environment"].get("FEDPEFT_CLIENT_KEYS") == "/run/secrets":
                used |= {secret for secret in service["secrets"] if secret.startswith("application-")}
            assert used == set(service["secrets"])


def test_containers_ask_for_little_and_one_port_alone_is_published(made: Deployment) -> None:
    table = yaml.safe_load((made.folder / "docker-compose.yml").read_text())
    assert [s["ports"] for s in table["services"].values() if "ports" in s] == [["9092:9092"]]
    for name, service in table["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "mem_limit" in service
        assert service["restart"] == ("on-failure" if name == "register" else "unless-stopped")
        asked = service.get("healthcheck", {}).get("test", [""])[-1]
        port = "9092" if name == "superlink" else "9094" if name.startswith("supernode") else None
        if port is not None:
            assert f"'127.0.0.1', {port}" in asked
        elif name.startswith("trainer"):
            assert "require_ready('unix:///run/fedpeft/trainer.sock')" in asked
        if name.startswith("trainer"):
            assert service["network_mode"] == "none"
            assert "networks" not in service
            assert sum(":/app/data:ro" in volume for volume in service["volumes"]) == 1
        elif any("/app/data" in volume for volume in service.get("volumes", ())):
            pytest.fail(f"{name} has data")
        if name.startswith("superexec"):
            assert all(table["networks"][network].get("internal") for network in service["networks"])
    assert services(made.folder / "client-2" / "docker-compose.yml").keys() == {
        "supernode-2",
        "trainer-2",
        "superexec-client-2",
    }
    command = services(made.folder / "client-2" / "docker-compose.yml")["supernode-2"]["command"]
    assert "--superlink=fed.example.org:9092" in command


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
def test_docker_compose_takes_every_file(made: Deployment) -> None:
    for path in made.folder.rglob("docker-compose.yml"):
        command = ["docker-compose", "config", "-q"]
        done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_manifest_is_signed_for_every_client_and_replaces_the_one_before(tmp_path: Path) -> None:
    made = init(tmp_path / "new", num_clients=2, host="localhost")
    (tmp_path / "pins.toml").write_text(PINNED)
    done = CliRunner().invoke(app, ["deploy", "pin", str(made.folder), str(tmp_path / "pins.toml")])
    assert done.exit_code == 0, done.output
    for client in (1, 2):
        pins = read_pins(made.secret(f"pins-{client}.toml"), made.secret(f"operator-{client}.pub"))
        assert pins is not None
        assert pins.rounds.max_rounds == 3
    with pytest.raises(InputError, match=r"manifest: rounds\.max_rounds"):
        pin(made, PINNED.replace("max_rounds = 3", "max_rounds = 0"))
    assert read_pins(made.secret("pins-1.toml")) is not None


def test_the_repositorys_own_file_is_what_the_topology_says() -> None:
    assert (ROOT / "docker-compose.yml").read_text() == compose.repository_file(), "run make compose"


def test_nothing_is_written_over_and_what_was_made_is_read_back(made: Deployment) -> None:
    assert read(made.folder) == made
    with pytest.raises(InputError, match="in use; keys are never written over"):
        init(made.folder, num_clients=3, host="fed.example.org")


@pytest.mark.parametrize("host", ["fed.example.org:9092", "https://fed", "", "-a", "a..b"])
def test_a_host_that_is_none_is_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError, match="expected a host name or an address"):
        init(tmp_path / "new", num_clients=1, host=host)
    assert not (tmp_path / "new").exists()


def test_what_is_no_deployment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no federation\.toml; make one with fedpeft deploy init"):
        read(tmp_path)
    made = init(tmp_path / "new", num_clients=1, host="10.0.0.7")
    manifest = made.folder / "federation.toml"
    manifest.write_text(manifest.read_text().replace("format = 1", "format = 9"))
    with pytest.raises(InputError, match="format 9, expected 1"):
        read(made.folder)
    made.secret("superexec-1").unlink()
    with pytest.raises(InputError, match="superexec-1: missing; it cannot be made anew"):
        made.secret("superexec-1")


def test_the_command_says_what_goes_where(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["deploy", "init", str(tmp_path / "new"), "--clients", "2", "--host", "10.1.2.3"])
    assert done.exit_code == 0, done.output
    assert "client-1 to client-2" in done.output
    told = tomllib.loads((tmp_path / "new" / "federation.toml").read_text())
    assert told == {"format": 1, "host": "10.1.2.3", "num_clients": 2}
    done = CliRunner().invoke(app, ["deploy", "up", str(tmp_path / "new")])
    assert done.exit_code != 0
    assert "docker compose -f" in str(done.exception)


def test_which_flwr_has_one_port_for_all() -> None:
    assert [local.one_port(version) for version in ("1.39.0", "1.39.2", "1.40.0", "1.42.0", "2.0.0")] == [
        False, False, True, True, True
    ]  # fmt: skip
