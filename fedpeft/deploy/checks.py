"""What a machine of a federation can have wrong: one small function for each, which yields what it finds.

What the compose file says is what runs, so flags, ports and networks are read from there, whoever edited it last.
"""

import importlib.metadata
import re
import shutil
import socket
import ssl
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509
from packaging.requirements import Requirement

from fedpeft.deploy.compose import FLEET_PORT
from fedpeft.deploy.machine import Fault, Machine, environment, value
from fedpeft.deploy.topology import EXECUTOR, SUPERLINK
from fedpeft.engines.apps import KEYS_VARIABLE
from fedpeft.errors import FedpeftError, InputError
from fedpeft.pinning.signed import read_pins
from fedpeft.wire.signature import PUBLIC, read_keys

__all__ = ["CHECKS", "LEAST_FREE_BYTES"]

LEAST_FREE_BYTES = 2 * 10**9
MOST_SKEW_SECONDS = 2.0
"""A SuperNode that is 4 s ahead is still let in; half of that is left to drift."""
_LEAST_SECRET_BYTES = 32
_LEAST_DAYS = 14
_PRIVATE = re.compile(r".*\.key|(?:node|application)-\d+|superexec-\w+")
_OPEN = ("0.0.0.0", "::", "")  # noqa: S104 - what is looked for


Check = Callable[[Machine], Iterator[Fault]]


def tls(machine: Machine) -> Iterator[Fault]:
    """TLS is on, towards both sides."""
    for name, command, _ in machine.flower():
        wanted = ["--root-certificates"] if command[0] != "flower-superlink" else []
        wanted += ["--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile"] if command[0] != "flower-superexec" else []
        for flag in wanted:
            if value(command, flag) is None:
                yield Fault(f"{name} runs without {flag}: no TLS", f"add {flag}=FILE to its command")


def insecure(machine: Machine) -> Iterator[Fault]:
    """Nobody was told to do without TLS, and every node shows a key."""
    for name, command, _ in machine.flower():
        if "--insecure" in command:
            yield Fault(f"{name} runs with --insecure: plain text, whoever listens", "remove --insecure")
        if command[0] == "flower-superlink" and "--enable-supernode-auth" not in command:
            words = f"{name} runs without --enable-supernode-auth: any client is let in"
            yield Fault(words, "add --enable-supernode-auth and register the clients' keys")
        if command[0] == "flower-supernode" and value(command, "--auth-supernode-private-key") is None:
            yield Fault(f"{name} shows no key", "add --auth-supernode-private-key=FILE")


def secrets(machine: Machine) -> Iterator[Fault]:
    """An executor must show a secret; without, whoever reaches the API takes its work."""
    for name, command, _ in machine.flower():
        flag = "--superexec-auth-secret-file"
        if (path := value(command, flag)) is None:
            yield Fault(f"{name} runs without {flag}: anybody may take an executor's task", f"add {flag}=FILE")
        elif (fault := _secret(machine.secrets / Path(path).name, name)) is not None:
            yield fault
        if command[0] != "flower-superexec" and value(command, "--isolation") != "process":
            words = f"{name} runs without --isolation=process: its end is the end of what it runs"
            yield Fault(words, "add --isolation=process, and an executor beside it")


def _secret(path: Path, name: str) -> Fault | None:
    if not path.is_file():
        return Fault(f"{path}: missing, and {name} needs it", "restore it; the other side must have the same")
    if (size := path.stat().st_size) < _LEAST_SECRET_BYTES:
        return Fault(f"{path}: {size} bytes, expected at least {_LEAST_SECRET_BYTES}", "write a longer random secret")
    return None


def database(machine: Machine) -> Iterator[Fault]:
    """The SuperLink remembers who is registered and what is under way."""
    for name, command, service in machine.flower("flower-superlink"):
        path = value(command, "--database")
        if path is None or path == ":flwr-in-memory:":
            words = f"{name} runs without --database: a restart forgets every client and every message"
            yield Fault(words, "add --database=/app/state/superlink.db on a volume")
            continue
        mounts = [str(volume).split(":")[1] for volume in service.get("volumes", ()) if ":" in str(volume)]
        if not any(Path(path).is_relative_to(mount) for mount in mounts):
            words = f"{name}: the database {path} is on no volume: it goes with the container"
            yield Fault(words, f"mount a volume at {Path(path).parent}")


def published(machine: Machine) -> Iterator[Fault]:
    """Only the Fleet port is seen from outside: the runtime API has no authentication."""
    for name, command, service in machine.flower():
        for port in map(str, service.get("ports", ())):
            inside = port.rpartition(":")[2].partition("/")[0]
            if name != SUPERLINK or inside != str(FLEET_PORT):
                words = f"{name} publishes port {port}: whoever reaches its API can run code on every node"
                yield Fault(words, f"publish nothing but {FLEET_PORT}:{FLEET_PORT} of {SUPERLINK}")
        if service.get("network_mode") == "host" and value(command, "--host") in _OPEN:
            yield Fault(f"{name} listens on {value(command, '--host')} of the host", "set --host=127.0.0.1")
    for name, network in machine.networks.items():
        if name != "fleet" and not (network or {}).get("internal"):
            yield Fault(f"network {name} is not internal: its containers reach the outside", "set internal: true")


def reachable(machine: Machine) -> Iterator[Fault]:
    """The runtime API does not answer under the server's public name."""
    host = machine.around.host
    for name, command, _ in machine.flower("flower-superlink", "flower-supernode") if host else ():
        port = int(value(command, "--port") or 0)
        if host and port and _answers(host, port):
            words = f"{name}: its API answers at {host}:{port}, without authentication"
            yield Fault(words, "let it listen on an internal address, or close the port in the firewall")


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), 2.0):
            return True
    except OSError:
        return False


def keys(machine: Machine) -> Iterator[Fault]:
    """Private files are readable by their owner alone."""
    for path in sorted(machine.secrets.glob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if _PRIVATE.fullmatch(path.name) and mode & 0o077:
            yield Fault(f"{path}: mode {mode:04o}, others can read it", f"chmod 600 {path}; if they did, make it anew")
        elif mode & 0o022:
            yield Fault(f"{path}: mode {mode:04o}, others can change it", f"chmod 644 {path}")
    for stray in ("ca.key",):
        if (machine.secrets / stray).exists():
            words = f"{machine.secrets / stray}: the authority's key on a machine that runs the federation"
            yield Fault(words, "keep it in a safe place; whoever has it can be anybody")


def certificates(machine: Machine) -> Iterator[Fault]:
    """Certificates are of the authority, and of this time."""
    found = {path: x509.load_pem_x509_certificate(path.read_bytes()) for path in machine.secrets.glob("*.crt")}
    authority = next((certificate for path, certificate in found.items() if path.name == "ca.crt"), None)
    if authority is None:
        yield Fault(f"{machine.secrets / 'ca.crt'}: missing", "restore the authority's certificate")
        return
    now = datetime.now(UTC)
    for path, certificate in sorted(found.items()):
        if now < certificate.not_valid_before_utc:
            yield Fault(f"{path}: valid from {certificate.not_valid_before_utc}: is this clock right?", "run NTP")
        if (days := (certificate.not_valid_after_utc - now).days) < _LEAST_DAYS:
            yield Fault(f"{path}: valid for {days} days", "make new certificates before it ends")
        try:
            certificate.verify_directly_issued_by(authority)
        except Exception:  # noqa: BLE001 - each kind of key has a kind of refusal of its own
            yield Fault(f"{path}: not signed by {machine.secrets / 'ca.crt'}", "restore the right pair")


def clock(machine: Machine) -> Iterator[Fault]:
    """This clock and the server's agree: a SuperNode some seconds ahead is refused."""
    if machine.around.clock is None:
        return
    try:
        skew = _skew(machine.around.clock, machine.secrets / "ca.crt")
    except (OSError, ValueError, urllib.error.URLError) as error:
        yield Fault(
            f"{machine.around.clock}: tells no time: {error}", "name a URL that answers, or run NTP and leave it"
        )
        return
    if abs(skew) > MOST_SKEW_SECONDS:
        words = f"this clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} {machine.around.clock}"
        yield Fault(words, "run NTP on both machines")


def _skew(url: str, authority: Path) -> float:
    """Return by how many seconds this clock is ahead; the header says whole seconds, their middle is meant."""
    trust = ssl.create_default_context(cafile=str(authority)) if url.startswith("https:") else None
    before = time.time()
    with urllib.request.urlopen(url, timeout=5, context=trust) as answer:  # noqa: S310 - what the operator names
        told = answer.headers["Date"]
    if told is None:
        raise ValueError("no Date header")
    return (before + time.time()) / 2 - (parsedate_to_datetime(told).timestamp() + 0.5)


def trainer(machine: Machine) -> Iterator[Fault]:
    """The trainer answers, and the node's config names one."""
    for name, command, _ in machine.flower("flower-supernode"):
        if "trainer=" not in (value(command, "--node-config") or ""):
            words = f"{name}: its --node-config names no trainer: the model is loaded anew for each message"
            yield Fault(words, 'add trainer="unix:///FOLDER/NAME.sock"')
    if machine.around.trainer is None:
        return
    from fedpeft.trainer.health import require_ready

    try:
        require_ready(machine.around.trainer)
    except FedpeftError as error:
        yield Fault(str(error), f"start it: fedpeft trainer --listen {machine.around.trainer} --state DIR")


def pins(machine: Machine) -> Iterator[Fault]:
    """What the trainer does is bounded by its own operator, in a manifest that nobody changed."""
    for name, command in machine.trainers():
        paths = [value(command, flag) for flag in ("--pins", "--pins-key")]
        manifest, key = (path and machine.secrets / Path(path).name for path in paths)
        if not manifest:
            yield Fault(
                f"{name} runs without --pins: it does what the server asks", "add --pins=FILE and --pins-key=FILE"
            )
            continue
        try:
            if read_pins(manifest, key or None) is None:
                words = f"{manifest}: pins nothing, so {name} does what the server asks"
                yield Fault(words, "fedpeft deploy pins EXPERIMENT.toml writes one, fedpeft deploy pin signs it")
        except InputError as error:
            yield Fault(str(error), "fedpeft deploy pin signs a manifest anew")


def signatures(machine: Machine) -> Iterator[Fault]:
    """Clients sign their replies, and the server takes none that its clients did not sign."""
    service = machine.services.get(EXECUTOR)
    if service is not None and not environment(service).get(KEYS_VARIABLE):
        words = f"{EXECUTOR} has no {KEYS_VARIABLE}: replies are taken that nobody signed"
        yield Fault(words, f"set {KEYS_VARIABLE} to the folder of the clients' public keys")
    elif service is not None:
        try:
            read_keys(machine.secrets)
        except InputError as error:
            yield Fault(str(error), f"restore the clients' {PUBLIC.format('K')}")
    for name, command in machine.trainers():
        if value(command, "--application-key") is None:
            yield Fault(f"{name} signs nothing: a server with keys refuses it", "add --application-key=FILE")


def disk(machine: Machine) -> Iterator[Fault]:
    """There is room for checkpoints and the database."""
    free = shutil.disk_usage(machine.folder).free
    if free < LEAST_FREE_BYTES:
        words = (
            f"{machine.folder}: {free / 1e9:.1f} GB left on its disk, expected at least {LEAST_FREE_BYTES / 1e9:.0f}"
        )
        yield Fault(words, "make room: a round that cannot be written is not committed")


def versions(_: Machine) -> Iterator[Fault]:
    """What is installed is what this fedpeft was made for."""
    for line in importlib.metadata.requires("fedpeft") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            have = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Fault(f"{wanted.name} is not installed, expected {wanted.specifier}", f"pip install '{line}'")
            continue
        if not wanted.specifier.contains(have, prereleases=True):
            yield Fault(f"{wanted.name} is {have}, expected {wanted.specifier}", f"pip install '{line}'")


CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        *(tls, insecure, secrets, database, published, reachable),
        *(keys, certificates, clock, trainer, pins, signatures, disk, versions),
    )
}
"""Name -> check, in the order they are told."""
