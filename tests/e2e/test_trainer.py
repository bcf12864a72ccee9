"""Trainers in processes of their own, one of them killed between rounds, one under Flower: the bits of one process."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.app import Context, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedpeft import server
from fedpeft.config import Experiment
from fedpeft.engines.apps import TRAINER_KEY, flower_client_app
from fedpeft.engines.inline import InlineGrid, simulate
from fedpeft.engines.start import ready
from fedpeft.trainer.address import parse
from tests.conftest import needed, tiny
from tests.e2e.test_inline import digest, lines

PATIENCE = 120.0
NAME = "e.toml"


class Site:
    """A client's machine: a trainer in a process, its socket, its state and its log."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(mode=0o700)
        self.address, self.log, self._options = f"unix://{folder}/t.sock", folder / "log", options
        self._command = ["--listen", self.address, "--state", str(folder / "state"), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "fedpeft", "trainer", *self._command]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def await_health(self) -> None:
        until = time.monotonic() + PATIENCE
        while not self._serves():
            assert time.monotonic() < until, self.log.read_text()
            assert self.running.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def end(self, number: signal.Signals) -> int:
        self.running.send_signal(number)
        return self.running.wait(PATIENCE)

    @property
    def running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    def _serves(self) -> bool:
        with grpc.insecure_channel(parse(self.address).target) as channel:
            try:
                found = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.RpcError:
                return False
            return bool(found.status == health_pb2.HealthCheckResponse.SERVING)


def settings(out: Path) -> Experiment:
    """Return three rounds whose clients keep a control variate and what their codec left out."""
    codec = {"codec": {"name": "int8"}, "feedback": {"up": True}}
    return tiny(out, **needed("scaffold", partition={"num_clients": 2}, evaluate={"on_clients": True}, **codec))


def short(out: Path) -> Experiment:
    """Return two rounds of it."""
    whole = settings(out)
    return dataclasses.replace(whole, rounds=whole.rounds.model_copy(update={"num_rounds": 2}))


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Path, list[Site]]]:
    """One trainer that was told the experiment, and one that takes the app's."""
    folder, bundle = Path(tempfile.mkdtemp(prefix="t", dir="/tmp")), tmp_path / "simulations"
    bundle.mkdir()
    (bundle / NAME).write_text(settings(tmp_path / "b").to_toml())
    made = [Site(folder / "0", "--experiment", str(bundle / NAME)), Site(folder / "1")]
    for site in made:
        site.start()
    try:
        for site in made:
            site.await_health()
        yield bundle, made
    finally:
        for site in made:
            if site.running.poll() is None:
                site.end(signal.SIGKILL)
        shutil.rmtree(folder)


def forwarding(bundle: Path, sites: list[Site]) -> Any:
    """Return the deployed client app, on nodes whose config names their trainers."""
    app = flower_client_app(bundle)

    def answer(message: Message, context: Context) -> Message:
        site = sites[int(context.node_config["partition-id"])]
        context.node_config = {**context.node_config, TRAINER_KEY: site.address}
        context.run_config = {"experiment": NAME, "override": ""}
        return app(message, context)

    return answer


def before_round(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    run_round = server.run_round

    def acting(federation: Any, state: Any, round_number: int) -> Any:
        if round_number == number:
            act()
        return run_round(federation, state, round_number)

    monkeypatch.setattr(server, "run_round", acting)


def test_two_trainers_one_killed_between_rounds_come_to_the_bits_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sites: tuple[Path, list[Site]]
) -> None:
    bundle, (told, other) = sites
    simulate(settings(tmp_path / "a"))
    ended = []

    def kill() -> None:
        ended.append(told.end(signal.SIGKILL))
        told.start()
        told.await_health()

    before_round(monkeypatch, 2, kill)
    bench, run, _ = ready(settings(tmp_path / "b"))
    grid = InlineGrid(forwarding(bundle, [told, other]), num_clients=2)
    summary = server.serve(grid, bench, run)
    contexts = [grid._contexts(client) for client in (0, 1)]

    assert ended == [-signal.SIGKILL]
    assert [row["failures"] for row in lines(run.path)] == [[]] * 4
    assert digest(run.path) == digest(tmp_path / "a") == summary["adapter_digest"]
    assert lines(run.path) == lines(tmp_path / "a")
    assert not any(context.state for context in contexts)
    assert os.path.exists(told.address.removeprefix("unix://"))
    assert [site.end(signal.SIGTERM) for site in (told, other)] == [0, 0]
    assert not os.path.exists(told.address.removeprefix("unix://"))
    log = told.log.read_text()
    assert log.count("trainer started: listen=unix:///") == 2
    assert log.count("loaded experiment=tiny-vit-") == 2
    assert log.rstrip().endswith("trainer stopped")
    assert "Traceback" not in log + other.log.read_text()
