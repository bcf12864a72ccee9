"""What a client's data has cost is kept by its own trainer: over restarts and runs, and ahead of training."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

import fedpeft.client
from fedpeft.engines.apps import flower_client_app
from fedpeft.engines.trainer import Parts
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.own import Lifetime
from fedpeft.trainer.states import States
from fedpeft.trainer.worker import Call, Worker
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import tiny
from tests.trainer.conftest import body_of
from tests.trainer.light import made
from tests.trainer.test_engine import asking, broadcast, joining


def experiment_of(**changes: Any) -> Any:
    return tiny(
        **{"strategy": {"name": "fedavg", "weighting": "uniform"}, "rounds": {"num_rounds": 2}, **PRIVACY, **changes}
    )


PRIVACY: dict[str, Any] = {
    "privacy": {
        "unit": "example",
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "clip": 1.0,
        "sample_rate": 0.2,
        "accountant": "rdp",
        "spare_rounds": 1,
    },
}
PRIVATE = experiment_of()
UNTOLD = "gave up; with [privacy] the reason stays in the client's own log"


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return assemble(PRIVATE)


class Trainer:
    """One that is started on the same disk again and again."""

    def __init__(self, place: Path, bench: Workbench, lifetime: Lifetime | None = None) -> None:
        self.place, self.bench, self.lifetime = place, bench, lifetime

    def ask(self, *rounds: int, run: int = 7, join: bool = True) -> list[Any]:
        """Start, join, answer one training message for each round number, end; return the replies."""
        parts = Parts(self.bench.experiment, ledgers=self.place / "privacy", lifetime=self.lifetime)
        worker = Worker(parts.answer, States(self.place))
        experiment = self.bench.experiment
        try:
            if join:
                worker.ask(asking("query.join", joining(self.bench), experiment, run=run), b"join", Call())
            asked = {n: asking("train", broadcast(self.bench, "train", n), experiment, run=run) for n in rounds}
            return [worker.ask(asked[number], f"{number}".encode(), Call()) for number in rounds]
        finally:
            worker.close()

    def charged(self) -> list[int]:
        (path,) = (self.place / "privacy").glob("*.jsonl")
        return [charge.round for charge in Ledger(path).charges()]


def test_every_release_is_charged_over_restarts_and_runs_and_none_beyond_the_budget(
    tmp_path: Path, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tmp_path, bench)
    assert all(reply.has_content() for reply in trainer.ask(1))
    assert all(reply.has_content() for reply in trainer.ask(2, join=False))
    assert all(reply.has_content() for reply in trainer.ask(1, run=8))
    assert trainer.charged() == [1, 2, 1]

    touched: list[int] = []
    monkeypatch.setattr(Workbench, "client_examples", lambda *_: touched.append(1))
    (reply,) = trainer.ask(2, run=8, join=False)
    assert reply.error.reason.startswith(UNTOLD)
    assert (trainer.charged(), touched) == ([1, 2, 1], [])


def test_a_message_that_comes_again_has_its_first_reply_and_is_charged_once(tmp_path: Path, bench: Workbench) -> None:
    trainer = Trainer(tmp_path, bench)
    replies = trainer.ask(*[1] * 20)
    assert len({body_of(reply) for reply in replies}) == 1
    assert trainer.charged() == [1]


def test_a_charge_is_there_before_the_training_that_it_pays_for(
    tmp_path: Path, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tmp_path, bench)

    def dies(*_: object, **__: object) -> None:
        assert trainer.charged() == [1]
        raise ValueError("the power is gone")

    monkeypatch.setattr(fedpeft.client, "train_turn", dies)
    (reply,) = trainer.ask(1)
    assert reply.error.reason.startswith(UNTOLD)
    assert trainer.charged() == [1]


def test_a_damaged_ledger_trains_nobody(tmp_path: Path, bench: Workbench) -> None:
    trainer = Trainer(tmp_path, bench)
    trainer.ask(1)
    (path,) = (tmp_path / "privacy").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":0x'))
    (reply,) = trainer.ask(2, join=False)
    assert reply.error.reason.startswith(UNTOLD)


def test_a_lifetime_budget_ends_the_second_experiment_on_the_same_data(
    tmp_path: Path, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = assemble(experiment_of(seed=5))
    assert bench.mechanism is not None
    lifetime = Lifetime(epsilon=bench.mechanism.spent(1) * 1.01, delta=1e-3)
    assert [reply.has_content() for reply in Trainer(tmp_path, bench, lifetime).ask(1)] == [True]

    touched: list[int] = []
    monkeypatch.setattr(Workbench, "client_examples", lambda *_: touched.append(1))
    (reply,) = Trainer(tmp_path, other, lifetime).ask(1, run=8)
    assert (reply.error.reason[: len(UNTOLD)], touched) == (UNTOLD, [])
    assert Trainer(tmp_path, bench).charged() == [1]


def test_without_privacy_a_client_with_a_lifetime_budget_takes_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_book = assemble(tiny(rounds={"num_rounds": 2}))
    monkeypatch.setattr(Workbench, "client_examples", lambda *_: pytest.fail("its data was touched"))
    trainer = Trainer(tmp_path, open_book, Lifetime(epsilon=1.0, delta=1e-3))
    (reply,) = trainer.ask(1)
    assert "lifetime budget, and the experiment has no [privacy]" in reply.error.reason


def test_a_node_without_a_trainer_charges_the_ledger_that_its_config_names(tmp_path: Path, bench: Workbench) -> None:
    (tmp_path / "e.toml").write_text(PRIVATE.to_toml())
    app, ledgers = flower_client_app(tmp_path), tmp_path / "privacy"
    config = {"partition-id": 0, "privacy-state": str(ledgers), "lifetime-epsilon": 1e-3, "lifetime-delta": 1e-3}

    def replies(**changed: Any) -> list[bool]:
        kept = {name: value for name, value in {**config, **changed}.items() if value is not None}
        state, run_config = RecordDict(), {"experiment": "e.toml"}
        context = Context(run_id=1, node_id=1, node_config=kept, state=state, run_config=run_config)
        app(made(joining(bench), kind="query.join"), context)
        return [app(made(broadcast(bench, "train", n), kind="train"), context).has_content() for n in (1, 2)]

    assert replies() == [False, False]
    assert not list(ledgers.glob("*.jsonl"))
    assert replies(**{"lifetime-epsilon": None, "lifetime-delta": None}) == [True, True]
    (path,) = ledgers.glob("*.jsonl")
    assert [charge.round for charge in Ledger(path).charges()] == [1, 2]


def test_a_trainers_node_does_not_name_another_ledger(tmp_path: Path, bench: Workbench) -> None:
    worker = Worker(Parts(PRIVATE, ledgers=tmp_path / "privacy").answer, States(tmp_path))
    try:
        config = {"partition-id": 0, "privacy-state": "/elsewhere"}
        worker.ask(asking("query.join", joining(bench), PRIVATE, node_config=config), b"join", Call())
        reply = worker.ask(asking("train", broadcast(bench, "train"), PRIVATE, node_config=config), b"1", Call())
    finally:
        worker.close()
    assert reply.error.reason.startswith(UNTOLD)
    assert not (tmp_path / "privacy").exists()
