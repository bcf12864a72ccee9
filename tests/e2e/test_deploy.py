"""A federation of real processes, with TLS and keys: the bits of a simulation, and nobody in who does not belong."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpeft.config import Experiment
from fedpeft.deploy.identity import make_authority, write_application_key, write_authority, write_node_key
from fedpeft.deploy.init import Deployment, init, pin
from fedpeft.deploy.local import Local, up
from fedpeft.deploy.submit import local_operator, submit
from fedpeft.engines import inline, operator
from fedpeft.engines.processes import started_under
from fedpeft.errors import InputError, RunError
from fedpeft.pinning.made import pins_of
from fedpeft.pinning.manifest import to_toml
from fedpeft.report.watch import Watcher
from fedpeft.training.workbench import assemble
from tests.conftest import tiny

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Local]]:
    """Two clients and a server that are up, the clients for one job; no process of them may be left."""
    folder = Path(os.path.relpath(tmp_path_factory.mktemp("d") / "f"))  # as one types it
    made = init(folder, num_clients=2, host="localhost")
    pin(made, to_toml(pins_of(assemble(job(tmp_path_factory.mktemp("pins"))))))
    with up(made) as local:
        yield made, local
    assert not started_under("FEDPEFT_DEPLOYMENT", str(made.folder.resolve() / "local"))


def job(out: Path, **changes: Any) -> Experiment:
    shared = {"partition": {"num_clients": 2}, "rounds": {"num_rounds": 3}, "codec": {"name": "compeft"}}
    return tiny(out, strategy={"name": "lora_fair"}, **{**shared, **changes})


def test_three_rounds_of_lora_fair_with_compeft_are_a_simulations_to_the_bit(
    running: tuple[Deployment, Local], tmp_path: Path
) -> None:
    made, local = running
    run = submit(local_operator(made), job(tmp_path / "deployed"), watcher=Watcher())

    simulated = inline.simulate(job(tmp_path / "simulated"))
    assert run.summary()["adapter_digest"] == simulated["adapter_digest"]
    assert run.summary()["num_failures"] == 0
    assert [record.clients for record in run.records()] == [(), (0, 1), (0, 1), (0, 1)]
    local.require_running()
    assert not (run.path / "journal").exists()
    for client in (1, 2):
        answers = made.folder / "local" / f"trainer-{client}" / "answers" / str(client - 1)
        assert len(list(answers.glob("*.reply"))) == 3
        log = (local.logs / f"trainer-{client}.log").read_text()
        answered = re.findall(r"answered type=(\S+) run=\d+ client=(\d)", log)
        assert answered == [(kind, str(client - 1)) for kind in ("query.join", *["train"] * 3)]
        assert "Traceback" not in log


def test_a_job_that_is_not_pinned_is_refused_without_a_word_of_the_nodes(
    running: tuple[Deployment, Local], tmp_path: Path
) -> None:
    made, local = running
    with pytest.raises(RunError, match=r"refused the plan: declined: pin rounds\.max_rounds \(id [0-9a-f]{12}\)"):
        submit(local_operator(made), job(tmp_path / "more", rounds={"num_rounds": 4}), watcher=Watcher())
    told = {path.stem: "asked 4, at most 3" in path.read_text() for path in local.logs.glob("*.log")}
    assert {name for name, found in told.items() if found} == {"trainer-1", "trainer-2"}


def test_a_client_that_signs_with_a_key_that_the_server_does_not_know_is_not_believed(
    running: tuple[Deployment, Local], tmp_path: Path
) -> None:
    made, _ = running
    public = made.secret("application-2.pub")
    known = public.read_bytes()
    write_application_key(tmp_path / "application-2", tmp_path / "application-2.pub")
    public.write_bytes((tmp_path / "application-2.pub").read_bytes())
    try:
        with pytest.raises(RunError, match="reply of client 1: the signature is not this client's"):
            submit(local_operator(made), job(tmp_path / "run"), watcher=Watcher())
    finally:
        public.write_bytes(known)


def test_one_up_at_a_time(running: tuple[Deployment, Local]) -> None:
    with pytest.raises(InputError, match="is up already"), up(running[0]):
        pass


def test_without_an_up_there_is_nobody_to_run_it(tmp_path: Path) -> None:
    made = init(tmp_path / "d", num_clients=1, host="localhost")
    with pytest.raises(InputError, match="start it with fedpeft deploy up"):
        local_operator(made)


def intruder(running: tuple[Deployment, Local], folder: Path, *changes: tuple[str, str]) -> str:
    """Start a SuperNode like the first client's but for these flags; return what it says until it ends or 20 s pass."""
    _, local = running
    command = [*local.processes["supernode-1"].args]  # type: ignore[misc, union-attr]
    for flag, value in (("--port", str(free())), *changes):
        command = [word for word in command if not word.startswith(f"{flag}=")] + ([f"{flag}={value}"] if value else [])
    log = folder / "intruder.log"
    with log.open("wb") as file:
        environment = {**local.operator.environment, "FLWR_HOME": str(folder / "flwr")}
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 20
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.3)
        finally:
            process.kill()
            process.wait()
    return log.read_text(errors="replace")


def free() -> int:
    from fedpeft.engines.superlink import free_port

    return free_port()


def online(local: Local) -> int:
    nodes = local.operator.ask("supernode", "list", operator.CONNECTION)["nodes"]
    return sum(node["status"] == "online" for node in nodes)


def test_a_key_that_nobody_registered_is_not_let_in(running: tuple[Deployment, Local], tmp_path: Path) -> None:
    write_node_key(tmp_path / "node-9", tmp_path / "node-9.pub")
    said = intruder(running, tmp_path, ("--auth-supernode-private-key", str(tmp_path / "node-9")))
    assert "authenticat" in said.lower() or "not registered" in said.lower(), said
    assert online(running[1]) == 2


def test_a_key_that_is_in_use_is_not_let_in_again(running: tuple[Deployment, Local], tmp_path: Path) -> None:
    said = intruder(running, tmp_path)
    assert "Failed to activate SuperNode" in said, said
    assert online(running[1]) == 2


def test_another_authoritys_word_is_not_taken(running: tuple[Deployment, Local], tmp_path: Path) -> None:
    write_authority(make_authority("other"), key=tmp_path / "ca.key", certificates=[tmp_path / "ca.crt"])
    said = intruder(running, tmp_path, ("--root-certificates", str(tmp_path / "ca.crt")))
    assert "CERTIFICATE_VERIFY_FAILED" in said or "handshake" in said.lower() or "unavailable" in said.lower(), said
    assert online(running[1]) == 2


def test_plain_text_is_not_answered(running: tuple[Deployment, Local], tmp_path: Path) -> None:
    _, local = running
    place = local.operator.environment["FLWR_HOME"]
    address = next(line for line in (Path(place) / "config.toml").read_text().splitlines() if "address" in line)
    plain = operator.environment(tmp_path / "flwr", address.split('"')[1], certificates=None)
    with pytest.raises(RunError):
        operator.Operator(environment={**os.environ, **plain}, folder=tmp_path).ask(
            "supernode", "list", operator.CONNECTION
        )
