"""A trainer in this process whose computing is a fake, and what a Flower app asks it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedpeft.trainer.address import Address, parse
from fedpeft.trainer.forward import forward
from fedpeft.trainer.message import Question
from fedpeft.trainer.service import serving
from fedpeft.trainer.states import States, opened
from fedpeft.trainer.worker import Answering, Worker
from fedpeft.wire.failure import WORDS_VARIABLE
from fedpeft.wire.record import content_of, record_of
from tests.trainer.light import content, message_of

Running = Callable[..., AbstractContextManager[Address]]


@pytest.fixture(autouse=True)
def _words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have errors tell their words: which one it was is what these tests are about."""
    monkeypatch.setenv(WORDS_VARIABLE, "tell")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose name is short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def running(place: Path) -> Running:
    """Start a trainer; its state lasts from one start to the next."""

    @contextmanager
    def started(answering: Answering, **settings: Any) -> Iterator[Address]:
        address = parse(f"unix://{place}/t.sock")
        with opened(place / "state") as states:
            worker = Worker(answering, states)
            try:
                with serving(address, worker, **settings) as ready:
                    ready()
                    yield address
            finally:
                worker.close()

    return started


def question(**changes: Any) -> Question:
    values = {
        "message_type": "train",
        "run": 2**63 + 5,
        "node": 2**64 - 1,
        "node_config": {"partition-id": 1, "whole": True, "share": 0.5, "word": "a b"},
        "run_config": {"experiment": "tiny.toml", "below": -3},
        "experiment": "seed = 1",
        "content": content(),
    }
    return Question(**{**values, **changes})


def ask(
    address: Address | str,
    body: bytes = b"body",
    *,
    kind: str = "train",
    ttl: float = 60.0,
    run: int = 7,
    client: int = 0,
) -> Message:
    """Ask as the Flower app does."""
    message = message_of(body, kind=kind, ttl=ttl)
    context = Context(run_id=run, node_id=1, node_config={"partition-id": client}, state=RecordDict(), run_config={})
    return forward(str(address), message, context, folder=Path("/nowhere"))


def body_of(reply: Message) -> bytes:
    assert not reply.has_error(), reply.error.reason
    return content_of(reply.content).body


def replying(message: Message, body: bytes) -> Message:
    return Message(record_of(content(body)), reply_to=message)


def kept(place: Path) -> States:
    return States(place / "state")
