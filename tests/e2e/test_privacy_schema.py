"""With [privacy] nothing leaves a client but its noised change: the schema, and the bytes that travel."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

import fedpeft.client
from fedpeft.client import evaluate
from fedpeft.engines.inline import simulate
from fedpeft.errors import WireError
from fedpeft.training.workbench import assemble
from fedpeft.wire.pb.v1 import messages_pb2
from fedpeft.wire.record import content_of
from tests.conftest import tiny

EXAMPLE = {"unit": "example", "epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "sample_rate": 0.1, "accountant": "rdp"}
CLIENT = {"unit": "client", "epsilon": 8.0, "delta": 1e-5, "clip": 0.5, "accountant": "rdp"}
UNIFORM = {"name": "fedavg", "weighting": "uniform"}
FOLLOWS_FROM = {
    "Header": {
        "version": "the code",
        "job": "the server",
        "round": "the server",
        "config_hash": "the experiment",
        "plan_hash": "the server",
        "base_hash": "the base model",
        "manifest": "the directive",
        "manifest_hash": "the directive",
        "codec": "the experiment",
        "num_elements": "the directive",
        "payload_sha256": "the noised change",
        "privacy": "the experiment",
        "fence": "the server",
        "run": "the server",
        "answers": "the server",
    },
    "Update": {
        "client": "the node",
        "num_examples": "1 for everyone",
        "num_steps": "0 for everyone",
        "train_loss": "absent for everyone",
        "seconds": "0 for everyone",
    },
    "Joined": {"client": "the node", "versions": "the code"},
}
"""Every field that a client can send under [privacy], and what it follows from, which is never data without noise."""


@pytest.mark.parametrize("message", FOLLOWS_FROM)
def test_a_new_field_is_thought_about_before_it_may_leave_a_client(message: str) -> None:
    fields = messages_pb2.DESCRIPTOR.message_types_by_name[message].fields
    kinds = {"broadcast", "update", "join", "joined", "evaluated"} if message == "Header" else set()
    assert {field.name for field in fields} == set(FOLLOWS_FROM[message]) | kinds


@pytest.mark.parametrize("table", [EXAMPLE, CLIENT], ids=["example", "client"])
def test_clients_of_very_different_data_send_headers_that_tell_them_apart_by_number_and_body_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any]
) -> None:
    sent: list[RecordDict] = []
    original = fedpeft.client.pack

    def watched(*arguments: Any) -> RecordDict:
        sent.append(original(*arguments))
        return sent[-1]

    monkeypatch.setattr(fedpeft.client, "pack", watched)
    dealt = {"name": "dirichlet", "alpha": 0.3, "num_clients": 3}
    simulate(tiny(tmp_path / "run", strategy=UNIFORM, partition=dealt, rounds={"num_rounds": 2}, privacy=table))

    headers = [messages_pb2.Header.FromString(content_of(record).header) for record in sent]
    updates = [header for header in headers if header.WhichOneof("kind") == "update"]
    assert len(updates) == 6
    assert {header.WhichOneof("kind") for header in headers} == {"update"}  # nodes of one process hold the plan
    for header in updates:
        update = header.update
        assert (update.num_examples, update.num_steps, update.seconds) == (1, 0, 0)
        assert not update.HasField("train_loss")
        update.client, header.payload_sha256 = 0, b""
    told = [{header.SerializeToString() for header in updates if header.round == number} for number in (1, 2)]
    assert [len(each) for each in told] == [1, 1]
    assert all(len(content_of(record).body) == len(content_of(sent[-1]).body) for record in sent[-6:])


@pytest.mark.parametrize("table", [EXAMPLE, CLIENT], ids=["example", "client"])
def test_a_client_does_not_score_its_data_whatever_the_server_asks(table: dict[str, Any]) -> None:
    bench = assemble(tiny(None, strategy=UNIFORM, privacy=table))
    with pytest.raises(WireError, match="nothing measured on this client's data is sent"):
        evaluate(None, None, bench)  # type: ignore[arg-type]
