"""Each thing a machine can have wrong is made, found, and told with what mends it; a fresh machine has none."""

import http.server
import importlib.metadata
import shutil
import socket
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fedpeft.cli import app
from fedpeft.deploy import checks
from fedpeft.deploy.doctor import examine
from fedpeft.deploy.identity import make_authority, write_certificate
from fedpeft.deploy.init import init, pin
from fedpeft.deploy.machine import Surroundings
from fedpeft.engines.apps import KEYS_VARIABLE
from fedpeft.errors import InputError
from tests.pinning.manifests import PINNED

NOTHING = Surroundings()
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor") / "f"
    pin(init(folder, num_clients=2, host="localhost"), PINNED)
    return folder


@pytest.fixture(autouse=True)
def _enough_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))


Usage = namedtuple("Usage", "total used free")


def found(folder: Path, around: Surroundings = NOTHING) -> dict[str, list[str]]:
    return {
        each.check: [f"{fault.words} -> {fault.remedy}" for fault in each.faults]
        for each in examine(folder, around)
        if each.faults
    }


def edited(service: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "docker-compose.yml"
        table = yaml.safe_load(path.read_text())
        change(table["services"][service] if service else table)
        path.write_text(yaml.safe_dump(table))

    return spoil


def without(flag: str) -> Callable[[dict[str, Any]], object]:
    def change(service: dict[str, Any]) -> None:
        kept = [word for word in service["command"] if not word.startswith(flag)]
        assert len(kept) < len(service["command"])
        service["command"] = kept

    return change


def foreign(folder: Path) -> None:
    for name in ("server.crt", "server.key"):
        (folder / "secrets" / name).unlink()
    write_certificate(make_authority("other"), folder / "secrets", "server", ["localhost"])


def without_keys(folder: Path) -> None:
    for path in (folder / "secrets").glob("application-*.pub"):
        path.unlink()


FAULTS: dict[str, tuple[str, Spoil, str, str]] = {
    "superlink without TLS": ("server", edited("superlink", without("--ssl-certfile")), "tls", "no TLS"),
    "client without TLS": ("client-1", edited("supernode-1", without("--root-cert")), "tls", "no TLS"),
    "executor without TLS": ("server", edited("superexec-server", without("--root-cert")), "tls", "no TLS"),
    "insecure": ("client-1", edited("supernode-1", lambda s: s["command"].append("--insecure")), "insecure", "remove"),
    "any client": (
        "server",
        edited("superlink", without("--enable-supernode-auth")),
        "insecure",
        "any client is let in",
    ),
    "no key": ("client-2", edited("supernode-2", without("--auth-supernode")), "insecure", "shows no key"),
    "no secret": ("server", edited("superlink", without("--superexec-auth")), "secrets", "take an executor's task"),
    "secret gone": ("client-1", lambda f: (f / "secrets/superexec-1").unlink(), "secrets", "missing, and supernode-1"),
    "short secret": (
        "server",
        lambda f: (f / "secrets/superexec-server").write_text("x"),
        "secrets",
        "1 bytes, expected",
    ),
    "no isolation": ("server", edited("superlink", without("--isolation")), "secrets", "--isolation=process"),
    "no database": ("server", edited("superlink", without("--database")), "database", "forgets every client"),
    "database in the container": (
        "server",
        edited("superlink", lambda s: s.pop("volumes")),
        "database",
        "on no volume",
    ),
    "runtime port published": (
        "server",
        edited("superlink", lambda s: s["ports"].append("8000:8000")),
        "published",
        "publishes port 8000:8000: whoever reaches",
    ),
    "node's port published": (
        "client-1",
        edited("supernode-1", lambda s: s.update(ports=["127.0.0.1:9094:9094/tcp"])),
        "published",
        "publishes port",
    ),
    "the host's network": (
        "server",
        edited("superlink", lambda s: s.update(network_mode="host")),
        "published",
        "listens on 0.0.0.0 of the host",
    ),
    "open network": ("server", edited("", lambda t: t["networks"].update(control={})), "published", "not internal"),
    "readable key": ("client-1", lambda f: (f / "secrets/node-1").chmod(0o640), "keys", "mode 0640, others can read"),
    "writable certificate": ("server", lambda f: (f / "secrets/ca.crt").chmod(0o666), "keys", "others can change it"),
    "authority's key": ("server", lambda f: (f / "secrets/ca.key").touch(0o600), "keys", "the authority's key on"),
    "another authority": ("server", foreign, "certificates", "server.crt: not signed by"),
    "authority gone": ("client-1", lambda f: (f / "secrets/ca.crt").unlink(), "certificates", "ca.crt: missing"),
    "no pins": ("client-2", edited("trainer-2", without("--pins=")), "pins", "does what the server asks"),
    "a manifest that somebody changed": (
        "client-1",
        lambda f: (f / "secrets/pins-1.toml").write_text(PINNED.replace("max_rounds = 3", "max_rounds = 4")),
        "pins",
        "not signed by the key of",
    ),
    "manifest gone": ("client-1", lambda f: (f / "secrets/pins-1.toml").unlink(), "pins", "cannot be read"),
    "replies that nobody signed": (
        "server",
        edited("superexec-server", lambda s: s["environment"].pop(KEYS_VARIABLE)),
        "signatures",
        "superexec-server has no FEDPEFT_CLIENT_KEYS: replies are taken that nobody signed",
    ),
    "its line without a value": (
        "server",
        edited("superexec-server", lambda s: s.update(environment=[f"{KEYS_VARIABLE}=", "OTHER=1"])),
        "signatures",
        "nobody signed",
    ),
    "clients' keys gone": ("server", without_keys, "signatures", "no application-K.pub there"),
    "a trainer that does not sign": (
        "client-1",
        edited("trainer-1", without("--application-key=")),
        "signatures",
        "trainer-1 signs nothing",
    ),
    "no trainer": (
        "client-1",
        edited("supernode-1", lambda s: s.update(command=[w.split(" trainer=")[0] for w in s["command"]])),
        "trainer",
        "names no trainer",
    ),
}


def test_a_fresh_deployment_has_no_fault(fresh: Path) -> None:
    done = examine(fresh, NOTHING)
    assert [each for each in done if each.faults] == []
    assert {each.machine.name for each in done} == {"server", "client-1", "client-2"}
    assert len(done) == 3 * len(checks.CHECKS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_its_check_alone(fresh: Path, tmp_path: Path, name: str) -> None:
    machine, spoil, check, words = FAULTS[name]
    shutil.copytree(fresh / machine, tmp_path / machine)
    spoil(tmp_path / machine)
    told = found(tmp_path / machine)
    assert list(told) == [check], told
    assert words in told[check][0]
    assert " -> " in told[check][0]


def test_a_deployment_that_nobody_pinned_yet_says_so(tmp_path: Path) -> None:
    init(tmp_path / "f", num_clients=1, host="localhost")
    told = found(tmp_path / "f")
    assert list(told) == ["pins"]
    assert "pins nothing, so trainer-1 does what the server asks -> fedpeft deploy pins" in told["pins"][0]


class Dated(http.server.BaseHTTPRequestHandler):
    ahead = 0.0

    def do_GET(self) -> None:
        self.send_response_only(200)
        self.send_header("Date", formatdate(time.time() + self.ahead, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Be silent."""


@pytest.fixture
def dated() -> Iterator[Callable[[float], str]]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Dated)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def ahead(seconds: float) -> str:
        Dated.ahead = seconds
        return f"http://127.0.0.1:{server.server_port}/health"

    yield ahead
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_clock_that_is_off_is_told_by_how_much_and_which_way(fresh: Path, dated: Callable[[float], str]) -> None:
    assert found(fresh / "client-1", Surroundings(clock=dated(0.0))) == {}
    (behind,) = found(fresh / "client-1", Surroundings(clock=dated(10.0)))["clock"]
    (ahead,) = found(fresh / "client-1", Surroundings(clock=dated(-10.0)))["clock"]
    assert "s behind http" in behind
    assert "s ahead of http" in ahead
    assert "run NTP" in ahead
    (silent,) = found(fresh / "client-1", Surroundings(clock="http://127.0.0.1:1/"))["clock"]
    assert "tells no time" in silent


def test_an_api_that_answers_under_the_public_name_is_found(fresh: Path, tmp_path: Path) -> None:
    shutil.copytree(fresh / "server", tmp_path / "server")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        change = without("--port")
        edited("superlink", lambda s: (change(s), s["command"].append(f"--port={port}")))(tmp_path / "server")
        told = found(tmp_path / "server", Surroundings(host="127.0.0.1"))
        assert f"answers at 127.0.0.1:{port}, without authentication" in told["reachable"][0]
    assert found(tmp_path / "server", Surroundings(host="127.0.0.1")) == {}


def test_a_trainer_that_is_not_there_is_found(fresh: Path, tmp_path: Path) -> None:
    told = found(fresh / "client-1", Surroundings(trainer=f"unix://{tmp_path}/none.sock"))
    assert "none.sock" in told["trainer"][0]
    assert "fedpeft trainer --listen" in told["trainer"][0]


def test_a_disk_that_is_nearly_full_is_found(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 10**9))
    assert "1.0 GB left on its disk, expected at least 2" in found(fresh / "server")["disk"][0]


def test_another_version_than_this_was_made_for_is_found(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["flwr[simulation]<1.40,>=1.39", "nowhere>=2"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.41.0" if name == "flwr" else real(name))
    told = found(fresh / "server")["versions"]
    assert "flwr is 1.41.0, expected <1.40,>=1.39" in told[0]
    assert "nowhere is not installed, expected >=2" in told[1]


def test_a_certificate_that_ends_soon_is_found(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_LEAST_DAYS", 400)
    told = found(fresh / "client-1")["certificates"]
    assert len(told) == 2
    assert "valid for 364 days" in told[0]


def test_the_command_says_it_and_its_exit_code_too(fresh: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(fresh)])
    assert done.exit_code == 0, done.output
    assert f"{3 * len(checks.CHECKS)} checks, 0 faults" in done.output
    shutil.copytree(fresh, tmp_path / "f")
    (tmp_path / "f/server/secrets/server.key").chmod(0o644)
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "f")])
    assert done.exit_code == 1
    assert "FAULT server: keys" in done.output
    assert "remedy: chmod 600" in done.output
    with pytest.raises(InputError, match="no machine of a federation"):
        examine(tmp_path, NOTHING)
