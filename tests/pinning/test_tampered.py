"""Instructions that a server tampered with: refused by the client app and by the trainer, and no data is ever read."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedpeft import plugins
from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.engines.apps import flower_client_app
from fedpeft.engines.trainer import Parts
from fedpeft.pinning.gate import gate_at
from fedpeft.pinning.made import pins_of
from fedpeft.pinning.manifest import to_toml
from fedpeft.rounds.roster import job_of
from fedpeft.trainer.states import States
from fedpeft.trainer.worker import Call, Worker
from fedpeft.training.workbench import Workbench, assemble
from fedpeft.wire import convert
from fedpeft.wire.message import Broadcast, Envelope, Join
from fedpeft.wire.payload import pack, unpack
from fedpeft.wire.record import content_of, server_message
from tests.conftest import merged, tiny
from tests.trainer.conftest import question
from tests.trainer.test_engine import broadcast, joining

HONEST: dict[str, Any] = {
    "strategy": {"name": "fedavg", "weighting": "uniform"},
    "rounds": {"num_rounds": 2, "min_clients": 2},
    "codec": {"name": "compeft"},
    "adapter": {"name": "lora", "rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "privacy": {
        "unit": "example",
        "noise_multiplier": 1.0,
        "epsilon": 50.0,
        "delta": 1e-3,
        "clip": 1.0,
        "sample_rate": 0.2,
        "accountant": "rdp",
    },
}


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return assemble(tiny(**HONEST))


@pytest.fixture(scope="module")
def touched(bench: Workbench) -> Iterator[list[str]]:
    """Return what data source and base model note when they are read, once the server has its own."""
    read: list[str] = []
    patch = pytest.MonkeyPatch()
    for group, name in (("source", "digits"), ("model", "tiny")):
        module = plugins.load(group, name)
        made = vars(module)["make"]

        def make(options: Any, made: Any = made, group: str = group) -> Any:
            inner = made(options)
            own = inner.load
            object.__setattr__(inner, "load", lambda *a, **k: (read.append(group), own(*a, **k))[1])
            return inner

        patch.setattr(module, "make", make)
    yield read
    patch.undo()


@dataclass
class Asked:
    """What reaches a node: the experiment that comes along, and a message."""

    experiment: Experiment
    kind: str
    content: RecordDict
    override: str = ""
    folder_text: str | None = field(default=None)

    @property
    def text(self) -> str:
        return self.folder_text or self.experiment.to_toml()


class App:
    """The client app in Flower's own process."""

    def __init__(self, place: Path, pins: Path) -> None:
        self.place, self.pins, self.state = place, pins, RecordDict()

    def ask(self, asked: Asked) -> Message:
        (self.place / "e.toml").write_text(asked.text)
        context = Context(
            run_id=1,
            node_id=1,
            node_config={"partition-id": 0, "pins": str(self.pins), "privacy-state": str(self.place / "ledger")},
            state=self.state,
            run_config={"experiment": "e.toml", "override": asked.override},
        )
        message = server_message(asked.content, message_type=asked.kind, run=1, node=1)
        return flower_client_app(self.place)(message, context)


class Trainer:
    """A trainer that works for whatever experiment comes along."""

    def __init__(self, place: Path, pins: Path) -> None:
        parts = Parts(ledgers=place / "ledger", gate=gate_at(pins, None))
        self.worker, self.number = Worker(parts.answer, States(place)), 0

    def ask(self, asked: Asked) -> Message:
        self.number += 1
        asking = question(
            message_type=asked.kind,
            run=1,
            node=1,
            node_config={"partition-id": 0},
            run_config={"experiment": "e.toml", "override": asked.override},
            experiment=asked.text,
            content=content_of(asked.content),
        )
        return self.worker.ask(asking, str(self.number).encode(), Call())


@pytest.fixture(scope="module", params=[App, Trainer])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bench: Workbench) -> Iterator[Any]:
    """Return a node that has joined the honest job."""
    place = tmp_path_factory.mktemp("node")
    (place / "pins.toml").write_text(to_toml(pins_of(bench)))
    made = request.param(place, place / "pins.toml")
    assert made.ask(honest_join(bench)).has_content()
    yield made
    if isinstance(made, Trainer):
        made.worker.close()


def honest_join(bench: Workbench) -> Asked:
    return Asked(bench.experiment, "query.join", joining(bench))


def joins(plan: Callable[[Plan], Plan] = lambda plan: plan, **changes: Any) -> Callable[[Workbench], Asked]:
    """A server that is consistent in itself asks a node to join a changed experiment, or with a changed plan."""

    def asked(bench: Workbench) -> Asked:
        experiment = tiny(**merged(HONEST, changes)) if changes else bench.experiment
        changed = plan(bench.adapted.plan)
        envelope = Envelope(
            job=job_of(experiment),
            round_number=0,
            config_hash=experiment.hash,
            plan_hash=changed.hash,
            base_hash=bench.adapted.base_hash,
            codec=experiment.codec.names,
        )
        return Asked(experiment, "query.join", pack(Join(envelope=envelope), changed.to_bytes()))

    return asked


def without_privacy(bench: Workbench) -> Asked:
    told = {key: value for key, value in HONEST.items() if key != "privacy"}
    experiment = tiny(**told)
    asked = joins()(bench)
    header, plan = unpack(asked.content, Join)
    envelope = replace(header.envelope, config_hash=experiment.hash, job=job_of(experiment), source=b"")
    return Asked(experiment, "query.join", pack(Join(envelope=envelope), plan))


def trains(round_number: int = 1, kind: str = "train", **changes: Any) -> Callable[[Workbench], Asked]:
    """A message of a round with a changed header."""

    def asked(bench: Workbench) -> Asked:
        header, body = unpack(broadcast(bench, kind, round_number), Broadcast)
        own = {key: changes.pop(key) for key in ("directive",) if key in changes}
        envelope = replace(header.envelope, source=b"", **changes)
        return Asked(bench.experiment, kind, pack(replace(header, envelope=envelope, **own), body))

    return asked


def of_another_version(bench: Workbench) -> Asked:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "VERSION", 99)
        return trains(base_hash=bench.adapted.base_hash)(bench)


def smuggled(bench: Workbench) -> Asked:
    return replace(joins()(bench), override="train.local_steps=50")


def from_outside(bench: Workbench) -> Asked:
    text = bench.experiment.to_toml().replace('name = "fedavg"', 'name = "tests.pinning.outside"')
    return replace(joins()(bench), folder_text=text)


def ranks(plan: Plan) -> Plan:
    return replace(plan, values={**plan.values, "ranks": dict.fromkeys(plan.values["ranks"], 3)})


def paths(plan: Plan) -> Plan:
    return replace(plan, values={**plan.values, "ranks": {"vit.layers.0.mlp.fc1": 2}})


def rank_of(bench: Workbench) -> Asked:
    from fedpeft.strategies.base import Directive

    return trains(directive=Directive(rank=4))(bench)


TAMPERED: dict[str, tuple[Callable[[Workbench], Asked], str]] = {
    "another base model, by hash": (lambda b: with_base(b, "0" * 64), "declined: pin base_hash"),
    "another base model, by table": (joins(model={"hidden_size": 32}), "declined: pin model"),
    "another base model in a round": (trains(base_hash="0" * 64), "declined: pin base_hash"),
    "another task": (joins(task={"mean": 0.4}), "declined: pin task"),
    "more ranks": (joins(adapter={"rank": 3}), "declined: pin adapter.max_rank"),
    "more ranks in the plan alone": (joins(ranks), "declined: pin adapter.max_rank"),
    "more ranks in a round": (rank_of, "declined: pin adapter.max_rank"),
    "another adapter": (joins(adapter={"name": "ia3"}), "declined: pin adapter.names"),
    "other layers": (joins(adapter={"target_modules": ["fc1"]}), "declined: pin adapter.targets"),
    "other layers in the plan alone": (joins(paths), "declined: pin adapter.targets"),
    "another way to aggregate": (joins(strategy={"name": "lora_fair"}), "declined: pin strategies"),
    "a larger clip": (joins(privacy={"clip": 1.5}), "declined: pin privacy.max_clip"),
    "less noise": (joins(privacy={"noise_multiplier": 0.9}), "declined: pin privacy.least_noise"),
    "a larger epsilon": (joins(privacy={"epsilon": 60.0}), "declined: pin privacy.max_epsilon"),
    "a larger delta": (joins(privacy={"delta": 2e-3}), "declined: pin privacy.max_delta"),
    "noise that the server knows": (joins(privacy={"noise": "reproducible"}), "declined: pin privacy.noise"),
    "another unit": (
        joins(privacy={"unit": "client", "sample_rate": None, "delta": 1e-3}),
        "declined: pin privacy.unit",
    ),
    "no privacy": (without_privacy, "declined: pin privacy.unit"),
    "a cohort of one": (joins(rounds={"min_clients": 1}), "declined: pin rounds.least_cohort"),
    "more rounds": (joins(rounds={"num_rounds": 3}), "declined: pin rounds.max_rounds"),
    "a round beyond the last": (trains(round_number=3), "declined: pin rounds.max_rounds"),
    "longer rounds": (joins(train={"local_steps": 4}), "declined: pin train.max_local_steps"),
    "longer rounds, by an override": (smuggled, "declined: pin train.max_local_steps"),
    "another codec": (joins(codec={"name": "int8"}), "declined: pin codecs"),
    "another codec in a round": (trains(codec=("int8",)), "declined: pin codecs"),
    "other data": (joins(data={"classes": [0, 1, 2, 3]}), "declined: pin data"),
    "other data to calibrate on": (
        joins(calibration={"num_examples": 4}, calibration_data={"name": "digits", "classes": [7, 8]}),
        "declined: pin data",
    ),
    "other examples of the data": (joins(partition={"num_clients": 2}), "declined: pin partition"),
    "sums over its own examples": (joins(evaluate={"on_clients": True}), "declined: pin evaluate_on_clients"),
    "sums over its own examples in a round": (trains(kind="evaluate"), "declined: pin evaluate_on_clients"),
    "another version": (of_another_version, "gave up"),
    "another experiment's hash": (trains(config_hash="0" * 64), "declined: pin config_hash"),
    "a message of another job": (trains(job="other-0"), "declined: pin job"),
    "code from elsewhere": (from_outside, "gave up"),
}


def with_base(bench: Workbench, base: str) -> Asked:
    asked = joins()(bench)
    header, plan = unpack(asked.content, Join)
    return replace(asked, content=pack(Join(envelope=replace(header.envelope, base_hash=base, source=b"")), plan))


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_instruction_is_refused_before_anything_is_read(
    name: str, node: Any, bench: Workbench, touched: list[str]
) -> None:
    make, words = TAMPERED[name]
    touched.clear()
    reply = node.ask(make(bench))
    assert reply.has_error()
    assert reply.error.reason.startswith(words), reply.error.reason
    assert re.search(r"\(id [0-9a-f]{12}\)$", reply.error.reason)
    assert touched == []


def test_what_is_pinned_is_done_and_then_data_is_read(node: Any, bench: Workbench, touched: list[str]) -> None:
    touched.clear()
    reply = node.ask(Asked(bench.experiment, "train", broadcast(bench, "train")))
    assert reply.has_content(), reply.error.reason
    assert touched[:2] == ["source", "model"]
