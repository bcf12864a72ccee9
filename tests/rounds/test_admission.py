"""Replays by the thousand, how long an update is, and that no codec makes a body that is held to be too large."""

import math
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict

from fedpeft import plugins
from fedpeft.client import Node, client_app
from fedpeft.codecs.base import Common
from fedpeft.engines.inline import InlineGrid
from fedpeft.errors import RefusedError
from fedpeft.rounds.admission import Admission, Asked, largest_body
from fedpeft.rounds.exchange import Exchange
from fedpeft.rounds.norms import product_norm, update_norm
from fedpeft.rounds.roster import find_clients
from fedpeft.strategies.base import ClientUpdate, Directive, State
from fedpeft.tensors import Tensors
from fedpeft.training.workbench import Workbench, assemble
from fedpeft.wire.record import content_of, record_of
from fedpeft.wire.signature import Keys
from tests.conftest import tiny
from tests.hostile import changed, header_of, keyring

KEYS, SIGNERS = keyring(2)


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return assemble(tiny(partition={"num_clients": 2}, train={"local_steps": 1}))


def state_of(bench: Workbench) -> State:
    return bench.strategy.init(bench.adapted.attached.slots, bench.adapted.initial)


def honest_replies(bench: Workbench, round_number: int, *, fence: int, keys: Keys = KEYS) -> dict[int, RecordDict]:
    """Return what both clients answer in a round."""
    taken: dict[int, RecordDict] = {}
    node = Node(
        experiment=lambda _: bench.experiment,
        workbench=lambda *_: bench,
        signer=lambda context: SIGNERS[int(context.node_config["partition-id"])],
    )
    app = client_app(node)

    def answer(message: Message, context: object) -> Message:
        reply: Message = app(message, context)  # type: ignore[arg-type]
        if message.metadata.message_type == "train":
            taken[message.metadata.dst_node_id - 1] = reply.content
        return reply

    grid = InlineGrid(answer, num_clients=2)
    nodes = find_clients(grid, bench, fence=fence, keys=keys)
    state = state_of(bench)
    asking = Exchange(
        grid=grid, bench=bench, nodes=nodes, state=state, round_number=round_number, fence=fence, keys=keys
    )
    assert [reply.failure for reply in asking.train([0, 1])] == [None, None]
    return taken


def asked(record: RecordDict, client: int) -> Asked:
    return Asked(client=client, kind="train", directive=Directive(), answers=header_of(record).answers)


def code_of(admission: Admission, question: Asked, record: RecordDict) -> str:
    try:
        admission.update(question, record)
    except RefusedError as error:
        return error.code
    return "taken"


def test_of_a_thousand_replays_none_is_counted_twice_and_none_that_is_stale_at_all(bench: Workbench) -> None:
    now, earlier, fenced = (honest_replies(bench, number, fence=fence) for number, fence in ((2, 7), (1, 7), (2, 6)))
    elsewhere = changed(now[0], lambda m: setattr(m, "job", "another-job"), signer=SIGNERS[0])
    admission = Admission(bench=bench, state=state_of(bench), round_number=2, fence=7, keys=KEYS)
    wrong = {"round": earlier[0], "job": elsewhere, "fence": fenced[0], "signature": now[1]}
    counts: dict[str, int] = {}
    for at in range(1000):
        code, record = list(wrong.items())[at % 4]
        if at % 5 == 0:
            code, record = "duplicate", now[0]
        found = code_of(admission, asked(now[0], 0), record)
        assert found == code or (at == 0 and found == "taken")
        counts[found] = counts.get(found, 0) + 1
    assert counts == {"taken": 1, "duplicate": 199, "round": 200, "job": 200, "fence": 200, "signature": 200}
    header, update = admission.update(asked(now[1], 1), now[1])
    assert (header.client, update.client) == (1, 1)


def test_the_size_of_a_header_does_not_tell_how_often_the_server_was_started(bench: Workbench) -> None:
    sizes = {len(content_of(honest_replies(bench, 1, fence=fence)[0]).header) for fence in (1, 300, 2**40)}
    assert max(sizes) - min(sizes) <= 1  # the number of seconds is a double, which protobuf leaves out where it is 0


def test_norms_are_those_of_whole_matrices(bench: Workbench) -> None:
    """By hand: the adapted weights made whole before and after, in float64."""
    slots, generator = bench.adapted.attached.slots, torch.Generator().manual_seed(1)
    adapter = bench.adapted.initial.map(lambda t: torch.randn(t.shape, generator=generator))
    delta = adapter.map(lambda t: 1e-3 * torch.randn(t.shape, generator=generator))
    update = ClientUpdate(client=0, delta=delta, num_examples=1, directive=Directive(scale=2.0))
    after = {name: adapter[name].double() + delta[name].double() for name in adapter}
    squares = 0.0
    for slot in slots:
        if slot.role == "B":
            a = next(each for each in slots if each.group == slot.group and each.role == "A")
            before = adapter[slot.name].double() @ adapter[a.name].double()
            squares += float(((2.0 * slot.scale) * (after[slot.name] @ after[a.name] - before)).square().sum())
    assert squares > 0
    assert product_norm(slots, adapter, update) == pytest.approx(math.sqrt(squares), rel=1e-9)
    beside = Tensors({"more": torch.full((4,), 2.0)})
    flat = torch.cat([tensor.double().flatten() for tensor in delta.values()])
    both = ClientUpdate(client=0, delta=delta, num_examples=1, beside=beside)
    assert update_norm(both) == pytest.approx(math.sqrt(float(flat.square().sum()) + 16.0), rel=1e-12)


def test_a_slice_moves_only_the_ranks_that_it_holds(bench: Workbench) -> None:
    slots, ones = bench.adapted.attached.slots, bench.adapted.initial.map(torch.ones_like)
    first_b = next(slot for slot in slots if slot.role == "B")
    cut = Tensors({first_b.name: torch.ones(first_b.shape[0], 1)})
    update = ClientUpdate(client=0, delta=cut, num_examples=1, directive=Directive(rank=1))
    width = next(slot for slot in slots if slot.group == first_b.group and slot.role == "A").shape[1]
    assert product_norm(slots, ones, update) == pytest.approx(first_b.scale * math.sqrt(first_b.shape[0] * width))


def test_a_product_beyond_its_bound_is_refused(tmp_path: Path) -> None:
    """B times 1e3 and A times 1e3: each is no longer than others may be, their product is."""
    bench = assemble(tiny(tmp_path, partition={"num_clients": 2}, rounds={"max_product_norm": 1e-9}))
    state, slots = state_of(bench), bench.adapted.attached.slots
    delta = state.adapter.map(torch.ones_like)
    update = ClientUpdate(client=0, delta=delta, num_examples=1)
    admission = Admission(bench=bench, state=state, round_number=1, fence=0)
    with pytest.raises(RefusedError, match=r"norm \d.*, expected at most rounds.max_product_norm = 1e-09") as caught:
        admission._require_bounds(update)
    assert caught.value.code == "norm"
    assert product_norm(slots, state.adapter, update) > 1.0


@pytest.mark.parametrize("name", plugins.names("codec"))
def test_no_codec_makes_a_body_that_is_held_to_be_too_large(name: str, bench: Workbench) -> None:
    """Of noise, with as many entries as the codec's options let it keep."""
    options = vars(plugins.load("codec", name))["Options"]
    most = {key: value for key, value in (("density", 1.0), ("fraction", 1.0)) if key in options.model_fields}
    codec = vars(plugins.load("codec", name))["make"](options(**most))
    generator = torch.Generator().manual_seed(2)
    for tensors in (
        bench.adapted.initial.map(lambda t: torch.randn(t.shape, generator=generator)),
        Tensors({str(at): torch.randn(1, generator=generator) for at in range(64)}),
    ):
        body = codec.encode(tensors, Common(roles={}, seed=1))
        assert len(body) <= largest_body(tensors.manifest()) / 2


def test_a_key_signs_for_nobody_else_and_for_nothing_else(bench: Workbench) -> None:
    record = honest_replies(bench, 1, fence=1)[0]
    KEYS.require(0, record)
    signed = content_of(record)
    for words, client, wrong in (
        ("no key of this client", 5, record),
        ("not this client's", 1, record),
        ("not signed", 0, changed(record)),
        ("not this client's", 0, record_with(record, signed.signature[::-1])),
        ("not this client's", 0, record_with(record, signed.signature[:10])),
    ):
        with pytest.raises(RefusedError, match=words) as caught:
            KEYS.require(client, wrong)
        assert caught.value.code == "signature"
    assert repr(SIGNERS[0]) == "Signer()"


def record_with(record: RecordDict, signature: bytes) -> RecordDict:
    return record_of(content_of(record)._replace(signature=signature))
