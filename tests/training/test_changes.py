"""A downlink of changes: what is kept, who holds what, and what comes out, against a slow account by hand."""

import random
from typing import Any

import pytest
import torch

from fedpeft.codecs import compeft
from fedpeft.codecs.base import NOTHING
from fedpeft.errors import BehindError, WireError
from fedpeft.strategies.base import State
from fedpeft.tensors import Tensors
from fedpeft.training.changes import (
    Held,
    caught_up,
    confirmed,
    held_by,
    held_of,
    holding,
    missing,
    reaches,
    settled_change,
    without_held,
)

CODEC = compeft.make(compeft.Options(density=0.1))
START = Tensors({"w": torch.linspace(-1, 1, 200).reshape(20, 10), "v": torch.ones(40)})


def moves(num: int) -> list[Tensors]:
    """Return what each round adds to the adapter."""
    generator = torch.Generator().manual_seed(3)
    return [START.map(lambda tensor: torch.randn(tensor.shape, generator=generator)) for _ in range(num)]


def after(num: int, *, feedback: bool) -> list[State]:
    """Return the states of so many rounds, the first before any."""
    states = [State(adapter=START)]
    for at, move in enumerate(moves(num), start=1):
        moved = State(adapter=states[-1].adapter + move)
        settings: dict[str, Any] = {"round_number": at, "feedback": feedback}
        states.append(settled_change(CODEC, NOTHING, list(START), states[-1], moved, **settings))
    return states


def come(state: State, held: Held, since: int, until: int, **changed: Any) -> Held:
    given: dict[str, Any] = {"since": since, "until": until, "adapter_hash": state.adapter.digest(), **changed}
    body = given.pop("body", None) or missing(state, since, until)
    return caught_up(CODEC, lambda _: NOTHING, held, body, START.manifest(), **given)


def test_what_is_sent_adds_up_to_what_the_server_has_and_feedback_loses_nothing() -> None:
    without, fed = after(5, feedback=False)[-1], after(5, feedback=True)[-1]
    total = START
    for move in moves(5):
        total = total + move

    assert (fed.exact - total).norm() < 1e-5
    assert not without.exact
    sent, adapter = [], START
    for at in range(1, 6):
        body = fed.sent[f"change/{at:06d}"].numpy().tobytes()
        sent.append(CODEC.decode(body, START.manifest()))
        adapter = adapter + sent[-1]
    assert adapter == fed.adapter
    assert (without.adapter - total).norm() > (fed.adapter - total).norm() > 0


@pytest.mark.parametrize("version", [0, 1, 3, 5])
@pytest.mark.parametrize("since", [0, 1, 3])
def test_a_client_takes_the_parts_it_lacks_and_comes_to_the_same_bits(version: int, since: int) -> None:
    states = after(5, feedback=True)
    held = held_of(holding(Held(version=version, adapter=states[version].adapter)), START)

    if version < since:
        with pytest.raises(BehindError, match=rf"holds adapter {version} and was sent the changes from {since} to 5"):
            come(states[-1], held, since, 5)
    else:
        assert come(states[-1], held, since, 5) == Held(version=5, adapter=states[-1].adapter)


def test_a_client_that_holds_another_adapter_refuses_what_comes_out() -> None:
    states = after(3, feedback=True)
    other = Held(version=2, adapter=states[2].adapter.replace({"v": torch.zeros(40)}))

    with pytest.raises(BehindError, match=r"adapter 3 comes out as \w{12}, and the server has \w{12}"):
        come(states[-1], other, 2, 3)
    with pytest.raises(BehindError, match="holds adapter 4 and was sent the changes from 2 to 3"):
        come(states[-1], Held(version=4, adapter=START), 2, 3)


def test_a_damaged_body_of_changes_is_refused() -> None:
    state, held = after(2, feedback=True)[-1], Held(version=0, adapter=START)
    body = missing(state, 0, 2)

    for damaged in (body[:-1], body + b"\0", body[:3], b"\xff" * 8 + body[8:], bytes(8) + body[8:]):
        with pytest.raises(WireError):
            come(state, held, 0, 2, body=damaged)


def test_a_client_without_memory_holds_the_plan_s_adapter() -> None:
    memory = Tensors({"own": torch.ones(2)}).joined(holding(Held(version=2, adapter=START)))

    assert held_of(Tensors(), START) == Held(version=0, adapter=START)
    assert held_of(memory, START.zeros()) == Held(version=2, adapter=START)
    assert list(without_held(memory)) == ["own"]


def test_changes_are_kept_while_they_are_smaller_than_the_adapter() -> None:
    state = after(40, feedback=True)[-1]
    kept = {name: len(value) for name, value in state.sent.items()}

    assert list(kept) == [f"change/{number:06d}" for number in range(41 - len(kept), 41)]
    assert sum(kept.values()) + 8 * len(kept) < 4 * START.num_elements
    assert sum(kept.values()) + 8 * len(kept) + 120 > 4 * START.num_elements, "one more would have fitted"
    assert reaches(state, 40 - len(kept), 40)
    assert reaches(state, 40, 40)
    assert not reaches(state, 39 - len(kept), 40)
    assert not reaches(state, 41, 40)


@pytest.mark.parametrize("seed", range(5))
def test_the_server_knows_what_each_client_was_last_sent(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    state, account = State(adapter=START), dict[int, int]()
    for version in range(6):
        clients = draw.sample(range(13), draw.randrange(9))
        state = confirmed(state, clients, version)
        account |= dict.fromkeys(clients, version)

    assert {client: held_by(state, client) for client in range(13)} == {c: account.get(c, 0) for c in range(13)}
