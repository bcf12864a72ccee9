"""Two hundred secrets planted on clients: none is in what the server logs, receives or leaves behind."""

import logging
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

import fedpeft.client
from fedpeft import config, plugins
from fedpeft.client import Node, client_app
from fedpeft.engines.inline import InlineGrid
from fedpeft.errors import DataError
from fedpeft.report.progress import plain_watcher
from fedpeft.report.run_directory import RunDirectory
from fedpeft.server import serve
from fedpeft.training.workbench import assemble
from tests.conftest import tiny

CLIENTS, ROUNDS = 41, 5
OWN_LOG = "fedpeft.client"
"""The logger of a client's half; on a node it goes to the node's own log."""


class Recorder(InlineGrid):
    """Keeps all that a reply holds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[bytes] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            told = [repr(reply.metadata), reply.error.reason if reply.has_error() else repr(reply.content)]
            self.seen += [str(each).encode() for each in told]
        return replies


def in_the_environment(secret: str, place: Path) -> None:
    os.environ["FEDPEFT_TEST_TOKEN"] = secret
    raise RuntimeError(f"401 for token {os.environ.pop('FEDPEFT_TEST_TOKEN')}")


def in_a_path(secret: str, place: Path) -> None:
    (place / secret / "patients.csv").read_text()


def in_an_exception(secret: str, place: Path) -> None:
    try:
        raise KeyError(secret)
    except KeyError as error:
        raise ValueError(f"row of {secret}\n{secret}") from error


def in_the_configuration(secret: str, place: Path) -> None:
    config.parse({"model": {"name": secret}, "data": {"name": "digits"}})


def in_a_file(secret: str, place: Path) -> None:
    path = place / "table.jsonl"
    path.write_text('{"text": "' + secret + '", "label": 1')
    try:
        options = {"path": str(path), "test_path": str(path), "text": "text", "label": "label"}
        source = vars(plugins.load("source", "table"))
        source["make"](source["Options"].model_validate(options)).load(seed=0)
    except Exception as error:
        raise DataError(f"{path.read_text()}: {error}") from error


PLACES: tuple[Callable[[str, Path], None], ...] = (
    in_the_environment,
    in_a_path,
    in_an_exception,
    in_the_configuration,
    in_a_file,
)


def federation(
    out: Path, place: Path, patch: pytest.MonkeyPatch, *, rounds: int, tells: bool
) -> tuple[list[str], Recorder]:
    """Run rounds in which every client but the first fails with a secret of its own; return secrets and replies."""
    experiment = tiny(
        out,
        partition={"num_clients": CLIENTS},
        rounds={"num_rounds": rounds, "min_clients": 1},
        evaluate={"every": 100},
    )
    bench = assemble(experiment)
    planted: list[str] = []
    honest = fedpeft.client.train_turn

    def failing(bench: Any, turn: Any, examples: Any, *, client: int) -> Any:
        if client == 0:
            return honest(bench, turn, examples, client=client)
        planted.append(f"s3cr3t-{secrets.token_hex(12)}")
        PLACES[client % len(PLACES)](planted[-1], place)
        raise AssertionError("the secret was not told")

    patch.setattr(fedpeft.client, "train_turn", failing)
    app = client_app(Node(experiment=lambda _: experiment, workbench=lambda _, __: bench, tells=tells))
    run, _ = RunDirectory.prepare(experiment)
    grid = Recorder(app, num_clients=CLIENTS)
    serve(grid, bench, run, watcher=plain_watcher())
    return planted, grid


def left_behind(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def found(planted: list[str], *places: bytes) -> list[str]:
    everything = b"\n".join(places)
    return [secret for secret in planted if secret.encode() in everything]


def test_none_of_two_hundred_secrets_leaves_its_client(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    planted, grid = federation(tmp_path / "run", tmp_path, monkeypatch, rounds=ROUNDS, tells=False)

    assert len(planted) == len(set(planted)) == 200
    formatter = logging.Formatter()
    own, server = (
        "\n".join(formatter.format(record) for record in caplog.records if (record.name == OWN_LOG) is mine).encode()
        for mine in (True, False)
    )
    assert found(planted, own) == planted
    printed = capfd.readouterr().out.encode()
    assert found(planted, left_behind(tmp_path / "run"), server, *grid.seen, printed) == []
    reasons = [f.reason for record in RunDirectory.open(tmp_path / "run").records() for f in record.failures]
    assert len(reasons) == 200
    assert {reason.rpartition(" (id ")[0] for reason in reasons} == {
        "gave up: unexpected, RuntimeError",
        "gave up: system, FileNotFoundError",
        "gave up: unexpected, ValueError",
        "gave up: config, ConfigError",
        "gave up: data, DataError",
    }


def test_where_words_are_told_every_secret_is_seen_by_the_same_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted, grid = federation(tmp_path / "run", tmp_path, monkeypatch, rounds=1, tells=True)
    assert len(planted) == 40
    assert found(planted, *grid.seen) == planted
    assert found(planted, left_behind(tmp_path / "run")) == planted
