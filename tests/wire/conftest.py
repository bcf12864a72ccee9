"""One run's headers, to be changed a field at a time."""

from collections.abc import Callable
from hashlib import sha256

import pytest
import torch

from fedpeft.codecs.none import Lossless
from fedpeft.strategies.base import Directive
from fedpeft.tensors import Tensors
from fedpeft.wire.message import Broadcast, Carried, Envelope, Evaluated, Header, Join, Joined, Update


@pytest.fixture
def tensors() -> Tensors:
    """Three tensors, named out of alphabetical order."""
    return Tensors({"w.B": torch.arange(6.0).reshape(2, 3), "w.A": torch.tensor(1.5), "head": torch.zeros(0, 4)})


@pytest.fixture
def body(tensors: Tensors) -> bytes:
    """The three tensors, packed."""
    return Lossless().encode(tensors)


@pytest.fixture
def envelope(tensors: Tensors) -> Envelope:
    """What every header of the run holds."""
    return Envelope(
        job="quickstart-1",
        round_number=2,
        config_hash="c" * 64,
        plan_hash="d" * 64,
        base_hash="e" * 64,
        codec=("none",),
        carries=Carried.of(tensors.manifest()),
    )


@pytest.fixture
def update(envelope: Envelope) -> Update:
    """A client's reply."""
    return Update(envelope=envelope, client=3, num_examples=40, num_steps=5, train_loss=0.25, seconds=1.5)


@pytest.fixture
def headers(envelope: Envelope, update: Update) -> list[Header]:
    """One header of each kind, and of a broadcast both kinds and one with every field."""
    return [
        Broadcast(envelope=envelope, client=3, kind="train"),
        Broadcast(envelope=envelope, client=0, kind="evaluate", directive=Directive(train=("w.A", "w.B"))),
        Broadcast(
            envelope=envelope, client=1, kind="train", directive=Directive(rank=4, held=3, scale=2.5, train=("w.A",))
        ),
        update,
        Evaluated(envelope=envelope, client=3, num_examples=8, sums={"loss": 2.5, "correct": 7.0}),
        Join(envelope=envelope),
        Joined(envelope=envelope, client=3, versions={"torch": "2.13", "fedpeft": "0.1"}),
    ]


@pytest.fixture
def reseal() -> Callable[[bytes, bytes], bytes]:
    """A checksum that holds: what a hostile sender computes over its own bytes."""
    return lambda head, body: sha256(head + sha256(body).digest()).digest()
