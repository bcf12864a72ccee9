"""Each hostile reply is refused by its code, the others of its round are used, and the model has not moved for it."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedpeft.client import Node, client_app
from fedpeft.engines.inline import InlineGrid
from fedpeft.errors import ConfigError, RunError, UnsupportedError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.server import serve
from fedpeft.tensors import Spec, manifest_hash
from fedpeft.training.workbench import assemble
from fedpeft.wire.pb.v1 import messages_pb2 as pb
from fedpeft.wire.record import content_of
from fedpeft.wire.signature import Keys, Signer
from tests.conftest import tiny
from tests.e2e.test_inline import digest, lines
from tests.hostile import changed, keyring, poisoned, raw_field

ATTACKER, NUM_CLIENTS = 1, 3
KEYS, SIGNERS = keyring(NUM_CLIENTS)
OWN = SIGNERS[ATTACKER]
UPLINK: list[Spec] = []
"""What clients of the experiment at hand send."""

Attack = Callable[[RecordDict, list[RecordDict]], RecordDict | None]
"""The attacker's honest reply, and those of earlier rounds -> what arrives; None if nothing does."""


def header(change: Callable[[pb.Header], object]) -> Attack:
    return lambda honest, _: changed(honest, change, signer=OWN)


def numbers(change: Callable[[np.ndarray], None]) -> Attack:
    return lambda honest, _: changed(honest, body=poisoned(honest, change), signer=OWN)


def first(value: float) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__(0, value)


def tensor(change: Callable[[list[Spec]], object]) -> Attack:
    """Change what the tensors are said to be: the hash that stands for them, and their number."""

    def attack(honest: RecordDict, _: list[RecordDict]) -> RecordDict:
        specs = list(UPLINK)
        change(specs)

        def respecified(message: pb.Header) -> None:
            message.manifest_hash = manifest_hash(specs)
            message.num_elements = sum(spec.num_elements for spec in specs)

        return changed(honest, respecified, body=bytes(4 * 3), signer=OWN)

    return attack


def first_tensor(**changes: Any) -> Attack:
    return tensor(lambda specs: specs.__setitem__(0, replace(specs[0], **changes)))


def examples(data: bytes) -> Attack:
    return lambda honest, _: raw_field(honest, data, signer=OWN)


def with_part(part: Any) -> Attack:
    return lambda honest, _: RecordDict({**{name: honest[name] for name in honest}, "extra": part})


def as_strings(honest: RecordDict, _: list[RecordDict]) -> RecordDict:
    array = Array(np.array(["a", "b"]))
    return RecordDict({**honest.config_records, "fedpeft.body": ArrayRecord({"fedpeft.body": array})})


def set_field(name: str, value: object) -> Attack:
    return header(lambda message: setattr(message, name, value))


ATTACKS: dict[str, tuple[str, Attack]] = {
    "nan": ("not_finite", numbers(first(np.nan))),
    "inf": ("not_finite", numbers(first(-np.inf))),
    "shape (1,)": ("manifest", first_tensor(shape=(1,))),
    "shape (3,)": ("manifest", first_tensor(shape=(3,))),
    "complex": ("manifest", first_tensor(dtype="complex64")),
    "strings": ("structure", as_strings),
    "an extra tensor": ("manifest", tensor(lambda specs: specs.append(Spec(name="x", shape=(3,), dtype="float32")))),
    "a missing tensor": ("manifest", tensor(lambda specs: specs.pop())),
    "an extra metric record": ("structure", with_part(MetricRecord({"accuracy": 1.0}))),
    "num_examples 1e30 as a double": ("weight", examples(b"\x11" + struct.pack("<d", 1e30))),
    "num_examples -1": ("weight", examples(b"\x10" + b"\xff" * 9 + b"\x01")),
    "num_examples -0.999999": ("weight", examples(b"\x11" + struct.pack("<d", -0.999999))),
    "num_examples 0": ("weight", examples(b"\x10\x00")),
    "num_examples nan": ("weight", examples(b"\x11" + struct.pack("<d", np.nan))),
    "num_examples x": ("weight", examples(b"\x12\x01x")),
    "num_examples 2**60": ("weight", header(lambda m: setattr(m.update, "num_examples", 2**60))),
    "an old round": ("round", lambda _, earlier: earlier[-1]),
    "the first round": ("round", lambda _, earlier: earlier[0]),
    "another job": ("job", set_field("job", "somebody-elses")),
    "another experiment": ("job", set_field("config_hash", "0" * 64)),
    "another base model": ("base", set_field("base_hash", "0" * 64)),
    "another adapter to start from": ("base", set_field("answers", b"0" * 32)),
    "an older server's": ("fence", set_field("fence", 0)),
    "another client's name": ("client", header(lambda m: setattr(m.update, "client", 2))),
    "not signed": ("signature", lambda honest, _: changed(honest)),
    "signed by another": ("signature", lambda honest, _: SIGNERS[2].signed(honest)),
    "signed before it was changed": (
        "signature",
        lambda honest, _: changed(honest, lambda m: setattr(m.update, "num_examples", 9), signer=None),
    ),
    "another version": ("version", set_field("version", 2)),
    "no header": ("version", lambda honest, _: changed(honest, lambda m: m.Clear(), signer=OWN)),
    "too large": ("size", lambda honest, _: changed(honest, body=bytes(1 << 18), signer=OWN)),
    "cut short": ("decode", lambda honest, _: changed(honest, body=content_of(honest).body[:-4], signer=OWN)),
    "a loss of nan": ("not_finite", header(lambda m: setattr(m.update, "train_loss", np.nan))),
    "a loss that sums to infinity": ("not_finite", header(lambda m: setattr(m.update, "train_loss", 1e308))),
    "a million times as long": ("norm", numbers(lambda values: np.multiply(values, 1e6, out=values))),
    "as long as float32 goes": ("norm", numbers(lambda values: values.fill(3e38))),
    "nothing of ours": ("structure", lambda *_: RecordDict({"hello": ConfigRecord({"a": 1})})),
}


def federate(
    out: Path,
    attack: Callable[[int, RecordDict, list[RecordDict]], RecordDict | Error],
    *,
    signed: bool = True,
    **changes: Any,
) -> Path:
    """Run with one client whose train replies are replaced; all sign, and it has its own key too."""
    rounds = {"max_update_norm": 100.0, **changes.pop("rounds", {})}
    bench = assemble(tiny(out, rounds=rounds, train={"local_steps": 1}, **changes))
    UPLINK[:] = bench.strategy.uplink(bench.adapted.attached.slots)
    run, resume = RunDirectory.prepare(bench.experiment)
    keys: Keys | None = KEYS if signed else None

    def signer(context: Context) -> Signer | None:
        return SIGNERS[int(context.node_config["partition-id"])] if signed else None

    node = Node(experiment=lambda _: bench.experiment, workbench=lambda *_: bench, signer=signer)
    honest, earlier = client_app(node), [RecordDict()]

    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if context.node_config["partition-id"] != ATTACKER or message.metadata.message_type != "train":
            return reply
        content = attack(int(message.metadata.group_id), reply.content, earlier)
        earlier.append(reply.content)
        return Message(content, reply_to=message)

    serve(InlineGrid(app, num_clients=NUM_CLIENTS), bench, run, resume=resume, keys=keys)
    return out


def silent(*_: Any) -> Error:
    return Error(8, "the client app stopped")


def test_a_hostile_client_is_refused_each_time_by_its_code_and_moves_nothing(tmp_path: Path) -> None:
    """One attack a round, the first in round 2; beside a run in which that client's process dies instead."""
    names = list(ATTACKS)

    def attack(number: int, honest: RecordDict, earlier: list[RecordDict]) -> RecordDict | Error:
        if number == 1:
            return honest
        arrives = ATTACKS[names[number - 2]][1](honest, earlier[1:])
        assert arrives is not None
        return arrives

    rounds, sparse = {"num_rounds": len(names) + 1}, {"every": len(names) + 1, "max_examples": 8}
    attacked = federate(tmp_path / "attacked", attack, rounds=rounds, evaluate=sparse)
    quiet = federate(
        tmp_path / "quiet", lambda n, honest, _: honest if n == 1 else silent(), rounds=rounds, evaluate=sparse
    )

    rows = lines(attacked)[2:]
    found = {name: [(f["client"], f["code"]) for f in row["failures"]] for name, row in zip(names, rows, strict=True)}
    assert found == {name: [(ATTACKER, code)] for name, (code, _) in ATTACKS.items()}
    assert digest(attacked) == digest(quiet)
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in lines(quiet)[2:]]


def test_a_forged_reply_that_comes_first_is_refused_and_the_honest_one_is_used(tmp_path: Path) -> None:
    """Flower takes the first reply to a message and drops the second, so the client is asked once more."""
    calls: dict[int, int] = {}

    def forging(number: int, honest: RecordDict, _: list[RecordDict]) -> RecordDict:
        calls[number] = calls.get(number, 0) + 1
        poison = changed(honest, body=poisoned(honest, first(np.nan)))
        return SIGNERS[2].signed(poison) if number == 2 and calls[number] == 1 else honest

    attacked = federate(tmp_path / "attacked", forging)
    undisturbed = federate(tmp_path / "undisturbed", lambda _, honest, __: honest)
    assert calls == {1: 1, 2: 2, 3: 1}
    assert [row["failures"] for row in lines(attacked)] == [[]] * 4
    assert digest(attacked) == digest(undisturbed)


def test_without_keys_nobody_signs_and_everything_else_holds(tmp_path: Path) -> None:
    run = federate(tmp_path / "run", lambda _, honest, __: changed(honest, lambda m: m.Clear()), signed=False)
    assert [row["failures"][0]["code"] for row in lines(run)[1:]] == ["version"] * 3


@pytest.mark.parametrize("says", [2**53, 10**9])
def test_a_client_counts_for_no_more_examples_than_the_cap(tmp_path: Path, says: int) -> None:
    def claiming(count: int) -> Callable[..., RecordDict]:
        return lambda _, honest, __: changed(honest, lambda m: setattr(m.update, "num_examples", count), signer=OWN)

    capped = {"max_examples": 50}
    lying = federate(tmp_path / "lying", claiming(says), rounds=capped)
    modest = federate(tmp_path / "modest", claiming(50), rounds=capped)
    believed = federate(tmp_path / "believed", claiming(says))
    assert digest(lying) == digest(modest) != digest(believed)
    uniform = {"name": "fedavg", "weighting": "uniform"}
    assert digest(federate(tmp_path / "a", claiming(says), strategy=uniform)) == digest(
        federate(tmp_path / "b", lambda _, honest, __: honest, strategy=uniform)
    )


def test_a_hostile_measurement_does_not_end_the_run(tmp_path: Path) -> None:
    """Clients' metrics are sums of what they say: other names, a negative weight, numbers too large."""
    experiment = tiny(tmp_path / "run", evaluate={"on_clients": True}, rounds={"num_rounds": 4})
    bench = assemble(experiment)
    run, resume = RunDirectory.prepare(experiment)
    changes: dict[int, Callable[[Any], object]] = {
        1: lambda sums: sums.clear(),
        2: lambda sums: sums.update(more=1.0),
        3: lambda sums: sums.update(weight=-sums["weight"]),
        4: lambda sums: sums.update(loss=1e308),
    }
    honest = client_app(Node(experiment=lambda _: experiment, workbench=lambda *_: bench))

    def app(message: Message, context: Context) -> Message:
        reply, number = honest(message, context), int(message.metadata.group_id)
        if context.node_config["partition-id"] != ATTACKER or message.metadata.message_type != "evaluate":
            return reply
        return Message(changed(reply.content, lambda m: changes[number](m.evaluated.sums)), reply_to=message)

    serve(InlineGrid(app, num_clients=NUM_CLIENTS), bench, run, resume=resume)
    codes = [[failure["code"] for failure in row["failures"]] for row in lines(tmp_path / "run")[1:]]
    assert codes == [["structure"], ["structure"], ["structure"], ["not_finite"]]
    assert all("accuracy" in row["client_metrics"] for row in lines(tmp_path / "run")[1:])


def test_the_keys_of_a_deployment_are_asked_for_at_the_handshake(tmp_path: Path) -> None:
    bench = assemble(tiny(tmp_path / "run"))
    run, resume = RunDirectory.prepare(bench.experiment)
    app = client_app(Node(experiment=lambda _: bench.experiment, workbench=lambda *_: bench))
    with pytest.raises(RunError, match=r"node 1 gave no valid answer .* not signed; give it --application-key"):
        serve(InlineGrid(app, num_clients=NUM_CLIENTS), bench, run, resume=resume, keys=KEYS)


def test_bounds_without_effect_or_against_the_accountant_are_refused(tmp_path: Path) -> None:
    uniform = {"name": "fedavg", "weighting": "uniform"}
    private = {"unit": "client", "noise_multiplier": 1.0, "delta": 1e-5, "clip": 1.0}
    for name in ("max_update_norm", "max_product_norm"):
        with pytest.raises(ConfigError, match=rf"rounds\.{name}: with privacy\.unit = 'client'"):
            tiny(tmp_path, rounds={name: 1.0}, privacy=private, strategy=uniform)
    with pytest.raises(ConfigError, match=r"rounds\.max_examples: has no effect"):
        tiny(tmp_path, rounds={"max_examples": 5}, strategy=uniform)
    with pytest.raises(UnsupportedError, match=r"max_product_norm: adapter 'ia3' has no A/B pairs"):
        assemble(tiny(tmp_path, rounds={"max_product_norm": 5.0}, adapter={"name": "ia3"}))
