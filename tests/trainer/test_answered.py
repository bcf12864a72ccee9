"""A client that is asked twice answers alike: no second training, no second noise, no second charge."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict, UserConfig

from fedpeft.deploy.identity import write_application_key
from fedpeft.engines.apps import ANSWERS_KEY, SIGNING_KEY, flower_client_app
from fedpeft.engines.trainer import Parts
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.own import OwnLedger
from fedpeft.rounds.answered import KEEP, Answered, once
from fedpeft.trainer.states import States
from fedpeft.trainer.worker import Call, Worker
from fedpeft.training.workbench import Workbench, assemble
from fedpeft.wire.message import Broadcast, Update
from fedpeft.wire.payload import pack, unpack
from fedpeft.wire.record import content_of
from fedpeft.wire.signature import read_keys
from tests.conftest import needed, tiny
from tests.hostile import keyring
from tests.trainer.light import made
from tests.trainer.test_engine import asking, broadcast, joining

PRIVATE = tiny(
    strategy={"name": "fedavg", "weighting": "uniform"},
    train={"local_steps": 1},
    privacy={
        "unit": "example", "noise": "secure", "noise_multiplier": 2.0, "delta": 1e-5, "clip": 1.0,
        "sample_rate": 0.2, "accountant": "rdp",
    },
)  # fmt: skip
KEYS, SIGNERS = keyring(1)


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return assemble(PRIVATE)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Start a trainer on the same state, as after a restart; nothing is left in memory of the one before."""
    open_workers: list[Worker] = []

    def start() -> Worker:
        parts = Parts(PRIVATE, ledgers=tmp_path / "privacy", answers=tmp_path / "answers", signer=SIGNERS[0])
        open_workers.append(Worker(parts.answer, States(tmp_path)))
        return open_workers[-1]

    yield start
    for worker in open_workers:
        worker.close()


def charges(folder: Path) -> int:
    own = OwnLedger(folder=folder / "privacy", experiment=PRIVATE.hash, client=0)
    return len(Ledger(own._path).charges())


def under(content: RecordDict, fence: int) -> RecordDict:
    header, body = unpack(content, Broadcast)
    return pack(replace(header, envelope=replace(header.envelope, fence=fence)), body)


def train(worker: Worker, content: RecordDict, key: str) -> Any:
    reply = worker.ask(asking("train", content), key.encode(), Call())
    assert reply.has_content(), reply.error.reason
    KEYS.require(0, reply.content)
    return content_of(reply.content)


def test_a_hundred_forced_retries_have_the_same_bytes_and_one_charge_also_after_a_restart(
    started: Callable[[], Worker], bench: Workbench, tmp_path: Path
) -> None:
    """The key by which the worker knows a question again is another each time, as in another run of Flower."""
    asked = under(broadcast(bench, "train"), 5)
    first = started()
    first.ask(asking("query.join", joining(bench)), b"join", Call())
    answers = {train(first, asked, f"{at}") for at in range(50)}
    second = started()
    answers |= {train(second, asked, f"{at}") for at in range(50)}
    assert len(answers) == 1
    assert charges(tmp_path) == 1
    train(second, under(broadcast(bench, "train", 2), 5), "next")
    assert charges(tmp_path) == 2


def test_a_server_that_has_taken_over_is_given_the_same_update_under_its_own_token(
    started: Callable[[], Worker], bench: Workbench, tmp_path: Path
) -> None:
    worker, asked = started(), broadcast(bench, "train")
    worker.ask(asking("query.join", joining(bench)), b"join", Call())
    older, newer = (train(worker, under(asked, fence), f"{fence}") for fence in (3, 4))
    assert older.body == newer.body
    assert older.signature != newer.signature
    assert charges(tmp_path) == 1


def test_another_beginning_is_another_question(started: Callable[[], Worker], bench: Workbench, tmp_path: Path) -> None:
    worker, asked = started(), broadcast(bench, "train")
    worker.ask(asking("query.join", joining(bench)), b"join", Call())
    header, body = unpack(asked, Broadcast)
    changed = pack(header, body[:-4] + b"\0\0\0\x3f")
    assert train(worker, asked, "a").body != train(worker, changed, "b").body
    assert charges(tmp_path) == 2


def test_the_same_experiment_begun_anew_is_another_question(
    started: Callable[[], Worker], bench: Workbench, tmp_path: Path
) -> None:
    """A client's data may be other by then; a server that only restarts keeps its run's name."""
    worker, asked = started(), broadcast(bench, "train")
    worker.ask(asking("query.join", joining(bench)), b"join", Call())
    header, body = unpack(asked, Broadcast)
    anew = pack(replace(header, envelope=replace(header.envelope, run=b"another")), body)
    assert train(worker, asked, "a").body != train(worker, anew, "b").body
    assert charges(tmp_path) == 2


def test_a_torn_answer_is_made_again(started: Callable[[], Worker], bench: Workbench, tmp_path: Path) -> None:
    worker, asked = started(), broadcast(bench, "train")
    worker.ask(asking("query.join", joining(bench)), b"join", Call())
    before = train(worker, asked, "a")
    (path,) = (tmp_path / "answers" / "0").glob("*.reply")
    path.write_bytes(path.read_bytes()[:-1])
    assert train(worker, asked, "b").body != before.body, "secure noise, so it was drawn again"
    assert charges(tmp_path) == 2, "and charged again"


def test_what_the_node_config_says_beside_a_trainer_is_refused(started: Callable[[], Worker], bench: Workbench) -> None:
    worker, asked = started(), broadcast(bench, "train")
    worker.ask(asking("query.join", joining(bench)), b"join", Call())
    for key in (SIGNING_KEY, ANSWERS_KEY):
        config = {"partition-id": 0, key: "/somewhere"}
        reply = worker.ask(asking("train", asked, node_config=config), key.encode(), Call())
        assert reply.has_error(), "with privacy its words stay in the log"


def test_without_a_trainer_the_node_config_names_key_and_folder(tmp_path: Path) -> None:
    settings = tiny(train={"local_steps": 1})
    bench, place = assemble(settings), tmp_path / "answers"
    (tmp_path / "e.toml").write_text(settings.to_toml())
    write_application_key(tmp_path / "application-1", tmp_path / "application-1.pub")
    config: UserConfig = {
        "partition-id": 0, SIGNING_KEY: str(tmp_path / "application-1"), ANSWERS_KEY: str(place)
    }  # fmt: skip
    context = Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={"experiment": "e.toml"})
    app = flower_client_app(tmp_path)
    replies = [
        app(made(content, kind=kind), context)
        for kind, content in (("query.join", joining(bench)), *[("train", broadcast(bench, "train"))] * 2)
    ]
    keys = read_keys(tmp_path)
    for reply in replies:
        assert reply.has_content(), reply.error.reason
        keys.require(0, reply.content)
    assert content_of(replies[1].content) == content_of(replies[2].content)
    assert [path.name for path in place.iterdir()] == ["0"]
    context.node_config[ANSWERS_KEY] = "answers"
    assert "expected an absolute path" in app(made(broadcast(bench, "train"), kind="train"), context).error.reason
    context.node_config[SIGNING_KEY] = str(tmp_path / "none")
    assert "application key cannot be read" in app(made(joining(bench), kind="query.join"), context).error.reason


def test_where_clients_keep_memories_nothing_is_held(tmp_path: Path) -> None:
    settings = tiny(**needed("scaffold"))
    bench = assemble(settings)
    worker = Worker(Parts(settings, answers=tmp_path / "answers").answer, States(tmp_path))
    worker.ask(asking("query.join", joining(bench)), b"join", Call())
    assert worker.ask(asking("train", broadcast(bench, "train")), b"1", Call()).has_content()
    worker.close()
    assert not (tmp_path / "answers").exists()


def test_the_newest_answers_stay_and_no_answer_is_given_that_is_not_on_the_disk(
    tmp_path: Path, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [broadcast(bench, "train", number) for number in range(1, KEEP + 3)]

    def answering(question: RecordDict) -> RecordDict:
        header, _ = unpack(question, Broadcast)
        update = Update(envelope=header.envelope, client=0, num_examples=1, num_steps=0, train_loss=None, seconds=0.0)
        return pack(update)

    answered = Answered(tmp_path)
    given = [once(answered, question, lambda question=question: answering(question)) for question in questions]  # type: ignore[misc]
    assert len(list(tmp_path.glob("*.reply"))) == KEEP
    asked: list[int] = []
    for at, question in enumerate(questions):
        known = once(answered, question, lambda at=at: asked.append(at) or given[at])  # type: ignore[misc, func-returns-value]
        assert content_of(known) == content_of(given[at])
    assert asked[:2] == [0, 1]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedpeft.rounds.answered.write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        once(answered, broadcast(bench, "train", 99), lambda: answering(questions[0]))
