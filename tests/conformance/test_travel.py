"""What of an adapter travels and is kept, for every one on every architecture."""

import json
import math
from pathlib import Path

import pytest
import torch

from fedpeft.adapters.plan import Plan
from fedpeft.codecs import none
from fedpeft.errors import WireError
from fedpeft.rounds import checkpoint
from fedpeft.rounds.checkpoint import Checkpoint
from fedpeft.strategies.base import State
from tests.adapters.models import build, random_state
from tests.conformance.test_adapters import adapter_of, attach, every_adapter, everywhere, planned


@everywhere
@every_adapter
def test_the_bytes_on_the_wire_are_those_of_the_manifest(name: str, model: str) -> None:
    attached, codec = attach(name, model), none.make(none.Options())
    state, manifest = random_state(attached, 1), attached.manifest()

    body = codec.encode(state)

    start = 8 + int.from_bytes(body[:8], "little")
    told = {name: tuple(about["shape"]) for name, about in json.loads(body[8:start]).items() if name != "__metadata__"}
    assert told == {spec.name: spec.shape for spec in manifest}
    assert {spec.dtype for spec in manifest} == {"float32"}
    assert len(body) - start == 4 * sum(math.prod(shape) for shape in told.values())
    assert codec.decode(body, manifest).digest() == state.digest()
    with pytest.raises(WireError):
        codec.decode(body[:-4], manifest)


@everywhere
@every_adapter
def test_a_checkpoint_brings_back_plan_and_state_to_the_bit(name: str, model: str, tmp_path: Path) -> None:
    plan = planned(name, model)
    attached = attach(name, model, plan)
    state = random_state(attached, 1)

    checkpoint.save(
        tmp_path,
        Checkpoint(round_number=1, state=State(adapter=state), plan=plan, config_hash="c" * 64, base_hash="b" * 64),
    )
    found = checkpoint.latest(tmp_path)

    assert found is not None
    assert found.plan.hash == plan.hash
    again = attach(name, model, found.plan)
    again.write(found.state.adapter)
    assert again.read().digest() == state.digest()


@everywhere
@every_adapter
def test_two_clients_agree_in_every_bit_after_one_broadcast(name: str, model: str) -> None:
    """Whatever seeds of their own they run under, and whatever they trained before: the frozen part included."""
    sent = planned(name, model)
    clients = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            attached = adapter_of(name).attach(build(model), Plan.from_bytes(sent.to_bytes()))
            attached.write(random_state(attached, seed))
            clients.append(attached)
    broadcast = random_state(clients[0], 3)

    for attached in clients:
        attached.write(broadcast)

    one, two = (dict(attached.model.named_parameters()) | dict(attached.model.named_buffers()) for attached in clients)
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())
