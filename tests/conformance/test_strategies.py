"""Every strategy in the folder: a new file is tested by being there, once it says here what it promises."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import fedpeft.strategies
from fedpeft import plugins
from fedpeft.adapters.base import Algebra, Slot, pairs
from fedpeft.config import Evaluate, Train
from fedpeft.errors import RunError, TensorMismatchError, UnsupportedError
from fedpeft.seeds import generator
from fedpeft.strategies.base import ClientUpdate, Stack, State, Strategy, Turn, WeightedSum
from fedpeft.strategies.ranks import padded, sliced
from fedpeft.tensors import Spec, Tensors


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What a strategy with its default options holds itself to."""

    one_is_its_mean: bool = False
    """From its first state, one client's delta is added as it is to what was trained."""
    streams: bool = True
    """The total of a round is as large for many clients as for one; else it is a Stack."""
    least_clients: int = 1
    """Fewer are refused."""
    needs_pairs: bool = False
    """An adapter without A/B pairs is refused."""
    sends_all: bool = True
    """Clients send all slots in every round; else one factor of each pair is held still or stays with them."""
    remembers: bool = False
    """Clients keep tensors of their own between rounds."""
    rewrites: bool = False
    """What a client sends is not the adapter as it was trained."""
    sends_beside: bool = False
    """Tensors that are no slots travel with the adapter."""
    needs_settings: bool = False
    """The settings of an experiment that says nothing of them are refused."""
    needs_lora: bool = False
    """An adapter other than A/B pairs is refused; both factors train, and frozen weights take a residual."""
    begins_anew: bool = False
    """What was trained goes into the residual: the factors after a round are fresh ones, B zero."""
    needs_core: bool = False
    """An adapter without a linear core is refused."""
    keeps_product: bool = False
    """One client gets the product of its factors back, in factors of the server's own; all else is its mean."""


PROMISES = {
    "dylora": Promises(one_is_its_mean=True, needs_pairs=True),
    "fed_sb": Promises(one_is_its_mean=True, needs_core=True),
    "fedadagrad": Promises(),
    "fedadam": Promises(),
    "fedavg": Promises(one_is_its_mean=True),
    "fedavgm": Promises(one_is_its_mean=True),
    "fedex_lora": Promises(one_is_its_mean=True, streams=False, needs_lora=True),
    "fedprox": Promises(one_is_its_mean=True),
    "fedrot_lora": Promises(one_is_its_mean=True, needs_pairs=True, rewrites=True),
    "fedsa_lora": Promises(
        one_is_its_mean=True, needs_pairs=True, sends_all=False, remembers=True, needs_settings=True
    ),
    "fedyogi": Promises(),
    "ffa_lora": Promises(one_is_its_mean=True, needs_pairs=True, sends_all=False),
    "flexlora": Promises(streams=False, needs_pairs=True, keeps_product=True),
    "flora": Promises(streams=False, needs_lora=True, begins_anew=True),
    "florist": Promises(streams=False, needs_pairs=True, keeps_product=True),
    "hetlora": Promises(one_is_its_mean=True, needs_pairs=True),
    "krum": Promises(streams=False, least_clients=5),
    "lora_fair": Promises(one_is_its_mean=True, streams=False, needs_pairs=True),
    "median": Promises(one_is_its_mean=True, streams=False),
    "rolora": Promises(one_is_its_mean=True, needs_pairs=True, sends_all=False),
    "scaffold": Promises(one_is_its_mean=True, remembers=True, sends_beside=True, needs_settings=True),
    "trimmed_mean": Promises(streams=False, least_clients=3),
}
SHARED = {
    "base",
    "held",
    "moments",
    "products",
    "pruning",
    "ranked",
    "ranks",
    "repair",
    "residual",
    "stacking",
    "weighting",
}
"""Modules of the folder that are no strategies."""
MANY = 5
"""Clients enough for any of them."""


def having(**wanted: bool) -> list[str]:
    """Return the strategies whose promises are these."""
    return [name for name, made in PROMISES.items() if all(vars(made)[key] == value for key, value in wanted.items())]


every_strategy = pytest.mark.parametrize("name", PROMISES)
FACTORS = {"A": (2, 5), "B": (4, 2)}
SLOTS = (
    *(
        Slot(
            name=f"layer.{block}.lora_{role}", shape=shape, algebra=Algebra.BILINEAR, group=f"layer.{block}", role=role
        )
        for block in range(2)
        for role, shape in FACTORS.items()
    ),
    Slot(name="layer.2.core", shape=(3, 3), algebra=Algebra.LINEAR, group="layer.2", role="core"),
    Slot(name="head.weight", shape=(3, 4), algebra=Algebra.LINEAR, group="head", role="head"),
)


def strategy_of(name: str) -> Strategy[Any]:
    module = plugins.load("strategy", name)
    made: Strategy[Any] = module.make(module.Options())
    return made


def draw(*purpose: int | str) -> Tensors:
    return Tensors((slot.name, torch.randn(slot.shape, generator=generator(2, slot.name, *purpose))) for slot in SLOTS)


def started(strategy: Strategy[Any]) -> State:
    strategy.check(SLOTS)
    return strategy.init(SLOTS, draw("adapter"))


def updates_of(
    strategy: Strategy[Any], state: State, deltas: list[Tensors], *, round_number: int = 1
) -> list[ClientUpdate]:
    """Return what checked clients would send, prepared: slots and ranks of their directive, some examples each."""
    updates = []
    for client, delta in enumerate(deltas):
        directive = strategy.directive(SLOTS, state, round_number=round_number, client=client)
        asked = [spec.name for spec in directive.select(SLOTS, strategy.uplink(SLOTS))]
        sent = sliced(delta.select(asked), SLOTS, rank=directive.rank, held=directive.held)
        beside = like(strategy.beside(SLOTS).up, delta)
        update = ClientUpdate(client=client, delta=sent, num_examples=client + 1, beside=beside, directive=directive)
        updates.append(strategy.prepare(SLOTS, state, update))
    return updates


def like(manifest: Sequence[Spec], delta: Tensors) -> Tensors:
    """Return tensors of a manifest that are zero where the delta is, and as many-valued."""
    values = torch.cat([tensor.flatten() for tensor in delta.values()])
    return Tensors((spec.name, values[: spec.num_elements].reshape(spec.shape)) for spec in manifest)


def turn_of(strategy: Strategy[Any], state: State, *, round_number: int, memory: Tensors) -> Turn:
    """Return what a client holds that was sent this state."""
    received = draw("seed").replace(state.adapter.select(spec.name for spec in strategy.downlink(SLOTS)))
    beside = strategy.broadcast(SLOTS, state)
    return Turn(
        slots=SLOTS,
        received=received,
        beside=beside,
        memory=memory,
        round_number=round_number,
        num_clients=MANY,
        learning_rate=0.1,
    )


def asked_of(strategy: Strategy[Any], state: State, delta: Tensors) -> Tensors:
    """Return a delta with zeros in the ranks that the first client does not train in round 1."""
    directive = strategy.directive(SLOTS, state, round_number=1, client=0)
    part = sliced(delta, SLOTS, rank=directive.rank, held=directive.held)
    return padded(part, SLOTS, rank=directive.rank, held=directive.held)


def total_of(strategy: Strategy[Any], updates: list[ClientUpdate]) -> Any:
    total = strategy.start()
    for update in updates:
        total = strategy.accumulate(total, update)
    return total


def one_round(strategy: Strategy[Any], state: State, deltas: list[Tensors], *, round_number: int = 1) -> State:
    updates = updates_of(strategy, state, deltas, round_number=round_number)
    return strategy.apply(SLOTS, state, total_of(strategy, updates))


def trained_slots(strategy: Strategy[Any], state: State, round_number: int = 1) -> set[str]:
    """Return the slots that clients train and send."""
    (update,) = updates_of(strategy, state, [state.adapter], round_number=round_number)
    return set(update.delta)


def restored(tensors: Tensors) -> Tensors:
    """The same through the bytes of a file, in the same order."""
    read = load(save(dict(tensors)))
    return Tensors((name, read[name]) for name in tensors)


def residuals(strategy: Strategy[Any], state: State) -> Tensors:
    return strategy.residuals(SLOTS, strategy.residual_parts(SLOTS, state))


def effective(strategy: Strategy[Any], state: State) -> dict[str, torch.Tensor]:
    """What a model computes with: residual + s B A of each pair, and all else as it is."""
    added, paired = residuals(strategy, state), {name for pair in pairs(SLOTS) for name in (pair.a.name, pair.b.name)}
    products = {
        pair.b.group: added[pair.b.group] + pair.scale * state.adapter[pair.b.name] @ state.adapter[pair.a.name]
        for pair in pairs(SLOTS)
    }
    return products | {name: tensor for name, tensor in state.adapter.items() if name not in paired}


def num_elements(total: WeightedSum | Stack) -> int:
    if isinstance(total, Stack):
        return sum(update.delta.num_elements for update in total.updates)
    assert total.tensors is not None
    return total.tensors.num_elements


def test_the_sweep_covers_the_folder() -> None:
    folder = Path(fedpeft.strategies.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")} - SHARED

    assert plugins.names("strategy") == list(PROMISES), "a new strategy says in PROMISES what it promises"
    assert set(PROMISES) == files
    assert len(PROMISES) == 22
    flags = vars(Promises()).keys() - {"least_clients", "sends_all"}
    assert {key: len(having(**{key: True})) for key in flags} == {
        "one_is_its_mean": 14,
        "streams": 14,
        "needs_pairs": 9,
        "remembers": 2,
        "rewrites": 1,
        "sends_beside": 1,
        "needs_settings": 2,
        "needs_lora": 2,
        "begins_anew": 1,
        "needs_core": 1,
        "keeps_product": 2,
    }
    assert len(having(sends_all=False)) == 3
    assert all(plugins.describe("strategy").values())


@every_strategy
def test_its_paper_is_named(name: str) -> None:
    assert re.search(r"\((19|20)\d\d\),\sarXiv \d{4}\.\d{5}", plugins.load("strategy", name).__doc__ or "")


@pytest.mark.parametrize("name", having(one_is_its_mean=True))
def test_one_client_gets_its_own_adapter_back(name: str) -> None:
    strategy = strategy_of(name)
    state, delta = started(strategy), draw("delta")

    found = one_round(strategy, state, [delta]).adapter

    trained = trained_slots(strategy, state)
    for slot, value in (state.adapter + asked_of(strategy, state, delta)).items():
        expected = value if slot in trained else state.adapter[slot]
        torch.testing.assert_close(found[slot], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in having(one_is_its_mean=False, begins_anew=False, keeps_product=False)
        if PROMISES[name].least_clients == 1
    ],
)
def test_where_one_client_is_not_its_mean_the_table_is_right_to_say_so(name: str) -> None:
    strategy = strategy_of(name)
    state, delta = started(strategy), draw("delta")

    found = one_round(strategy, state, [delta]).adapter

    assert not any(torch.allclose(found[slot], value, rtol=1e-3) for slot, value in (state.adapter + delta).items())


@pytest.mark.parametrize("name", having(keeps_product=True))
def test_one_client_gets_its_product_back_in_other_factors(name: str) -> None:
    strategy = plugins.load("strategy", name).make(exact_options(name))
    state, delta = started(strategy), draw("delta")

    found, mine = one_round(strategy, state, [delta]).adapter, state.adapter + delta

    torch.testing.assert_close(found["head.weight"], mine["head.weight"])
    for block in range(2):
        a, b = (f"layer.{block}.lora_{role}" for role in "AB")
        torch.testing.assert_close(found[b] @ found[a], mine[b] @ mine[a], rtol=1e-5, atol=1e-5)
        assert not any(torch.allclose(found[slot], mine[slot], rtol=1e-3) for slot in (a, b))


def exact_options(name: str) -> Any:
    """Return the options with which nothing of the product is cut off."""
    options = plugins.load("strategy", name).Options
    return options(**{key: 1.0 for key in ("tau",) if key in options.model_fields})


@pytest.mark.parametrize("name", [name for name, made in PROMISES.items() if made.least_clients > 1])
def test_too_few_clients_are_refused_with_both_numbers(name: str) -> None:
    strategy, least = strategy_of(name), PROMISES[name].least_clients
    state = started(strategy)

    assert strategy.least_updates() == least
    one_round(strategy, state, [draw("delta", client) for client in range(least)])
    with pytest.raises(RunError, match=rf"{least - 1} update.* at least {least}"):
        one_round(strategy, state, [draw("delta", client) for client in range(least - 1)])


@pytest.mark.parametrize("name", having(begins_anew=False))
def test_zero_updates_change_nothing(name: str) -> None:
    strategy = strategy_of(name)
    state = started(strategy)

    found = one_round(strategy, state, [state.adapter.zeros()] * MANY)

    assert found.adapter.digest() == state.adapter.digest()
    assert not any(residual.any() for residual in residuals(strategy, found).values())


@pytest.mark.parametrize("name", having(begins_anew=True))
@pytest.mark.parametrize("clients", [1, MANY])
def test_one_that_begins_anew_changes_no_weight_by_zero_updates_and_gives_one_client_its_own(
    name: str, clients: int
) -> None:
    """What counts is W + residual + s B A; heads are averaged as they are anywhere."""
    strategy = strategy_of(name)
    state, delta = started(strategy), draw("delta")
    change = state.adapter.zeros() if clients > 1 else delta

    found = one_round(strategy, state, [change] * clients)

    expected = effective(strategy, State(adapter=state.adapter + change, memory=state.memory))
    for slot, value in effective(strategy, found).items():
        torch.testing.assert_close(value, expected[slot], rtol=1e-5, atol=1e-5)
    assert not any(found.adapter[slot].any() for slot in found.adapter if slot.endswith("lora_B"))


@every_strategy
@pytest.mark.parametrize("round_number", [1, 2])
def test_what_was_not_trained_stays_to_the_bit_and_what_was_moves(name: str, round_number: int) -> None:
    strategy = strategy_of(name)
    state = started(strategy)
    trained = trained_slots(strategy, state, round_number)
    sent = {spec.name for spec in strategy.downlink(SLOTS)}

    deltas = [draw("delta", client) for client in range(MANY)]
    found = one_round(strategy, state, deltas, round_number=round_number).adapter

    assert trained <= sent <= set(state.adapter)
    assert (trained == set(state.adapter)) == PROMISES[name].sends_all
    assert {slot for slot in found if not torch.equal(found[slot], state.adapter[slot])} == trained


@every_strategy
def test_inputs_are_left_as_they_were(name: str) -> None:
    strategy = strategy_of(name)
    state, deltas = started(strategy), [draw("delta", client) for client in range(MANY)]
    before = [tensors.digest() for tensors in (state.adapter, state.memory, *deltas)]

    one_round(strategy, state, deltas)

    assert [tensors.digest() for tensors in (state.adapter, state.memory, *deltas)] == before


@every_strategy
def test_the_state_survives_a_checkpoint_to_the_bit(name: str) -> None:
    strategy = strategy_of(name)
    state = one_round(strategy, started(strategy), [draw("first", client) for client in range(MANY)])
    copy = State(adapter=restored(state.adapter), memory=restored(state.memory))
    deltas = [draw("second", client) for client in range(MANY)]

    one, two = (one_round(strategy, start, deltas, round_number=2) for start in (state, copy))

    assert isinstance(one.adapter, Tensors)
    assert isinstance(one.memory, Tensors)
    assert (one.adapter.digest(), one.memory.digest()) == (two.adapter.digest(), two.memory.digest())
    assert one.adapter.manifest() == tuple(slot.spec for slot in SLOTS)
    fixed = not PROMISES[name].needs_lora
    assert not fixed or one.memory.manifest() == started(strategy).memory.manifest()
    assert (residuals(strategy, one).manifest() == residuals(strategy, two).manifest() == ()) == fixed


@every_strategy
def test_updates_of_different_shapes_are_refused_by_name(name: str) -> None:
    strategy = strategy_of(name)
    state, wrong = started(strategy), dict(draw("delta"))
    slot = "layer.1.lora_B" if "layer.1.lora_B" in trained_slots(strategy, state) else "layer.1.lora_A"
    wrong[slot] = torch.zeros((5, 2) if slot.endswith("B") else (2, 6))

    with pytest.raises(TensorMismatchError, match=rf"{re.escape(slot)} \[(5, \d|\d, 6)\]"):
        one_round(strategy, state, [*[draw("delta")] * (MANY - 1), Tensors(wrong)])
    with pytest.raises(TensorMismatchError, match=rf"{re.escape(slot)} \[(5, \d|\d, 6)\]"):
        one_round(strategy, state, [Tensors(wrong)] * MANY)


@pytest.mark.parametrize("name", having(streams=True))
def test_the_total_does_not_grow_with_the_number_of_clients(name: str) -> None:
    strategy = strategy_of(name)
    state = started(strategy)
    sizes = set()
    for count in (1, 2, 17):
        total = total_of(strategy, updates_of(strategy, state, [draw("delta", client) for client in range(count)]))
        assert isinstance(total, WeightedSum)
        sizes.add(num_elements(total))

    assert len(sizes) == 1
    beside = sum(spec.num_elements for spec in strategy.beside(SLOTS).up)
    assert sizes <= set(range(draw("delta").num_elements + beside + 1))


@pytest.mark.parametrize("name", having(streams=False))
def test_one_that_stacks_keeps_each_update_once_and_says_so(name: str) -> None:
    strategy = strategy_of(name)
    total = total_of(strategy, updates_of(strategy, started(strategy), [draw("delta")] * 7))

    assert isinstance(total, Stack)
    assert num_elements(total) == 7 * draw("delta").num_elements
    assert "K adapters of memory" in (plugins.load("strategy", name).__doc__ or "")


@pytest.mark.parametrize("name", having(streams=False))
@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_a_stack_in_any_order_gives_the_same_bits(name: str, order: tuple[int, ...]) -> None:
    strategy = strategy_of(name)
    state = started(strategy)
    updates = updates_of(strategy, state, [draw("delta", client) for client in range(MANY)])

    one, two = (
        strategy.apply(SLOTS, state, total_of(strategy, given))
        for given in (updates, [updates[client] for client in order])
    )

    assert (one.adapter.digest(), one.memory.digest()) == (two.adapter.digest(), two.memory.digest())


@pytest.mark.parametrize("name", having(streams=True))
def test_a_sum_in_another_order_is_the_same_but_for_rounding(name: str) -> None:
    strategy = strategy_of(name)
    state = started(strategy)
    updates = updates_of(strategy, state, [draw("delta", client) for client in range(MANY)])

    one, two = (strategy.apply(SLOTS, state, total_of(strategy, given)).adapter for given in (updates, updates[::-1]))

    for slot in one:
        torch.testing.assert_close(one[slot], two[slot], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*having(needs_pairs=True), *having(needs_lora=True)])
def test_an_adapter_without_pairs_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"^strategy '{name}' .* no pairs [^\n]*$"):
        strategy_of(name).check(SLOTS[-1:])


@pytest.mark.parametrize("name", having(needs_lora=True))
def test_one_that_needs_lora_refuses_what_stands_beside_a_pair(name: str) -> None:
    magnitude = Slot(name="layer.0.m", shape=(4,), algebra=Algebra.NONLINEAR, group="layer.0", role="magnitude")

    with pytest.raises(UnsupportedError, match=rf"^strategy '{name}' .* more than pairs \(magnitude\)[^\n]*$"):
        strategy_of(name).check((*SLOTS, magnitude))


@pytest.mark.parametrize("name", having(needs_core=True))
def test_an_adapter_without_a_core_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"^strategy '{name}' .* no linear core [^\n]*$"):
        strategy_of(name).check([slot for slot in SLOTS if slot.role != "core"])


@pytest.mark.parametrize("name", having(needs_lora=False))
def test_any_other_strategy_has_no_residual_and_takes_none(name: str) -> None:
    strategy = strategy_of(name)
    state = one_round(strategy, started(strategy), [draw("delta", client) for client in range(MANY)])
    claimed = Tensors({"residual.layer.0": torch.zeros(4, 5)}).manifest()

    assert len(strategy.residual_parts(SLOTS, state)) == 0
    assert strategy.residual_manifest(SLOTS, claimed) == ()
    assert len(strategy.residuals(SLOTS, Tensors())) == 0


@pytest.mark.parametrize("name", having(needs_pairs=False, needs_lora=False, needs_core=False))
def test_any_other_strategy_serves_an_adapter_without_pairs(name: str) -> None:
    strategy_of(name).check(SLOTS[-1:])


@every_strategy
def test_a_client_sends_and_keeps_what_both_sides_agreed_on(name: str) -> None:
    strategy, promises = strategy_of(name), PROMISES[name]
    state = started(strategy)
    first = turn_of(strategy, state, round_number=1, memory=Tensors())
    trained = draw("trained")
    before = [tensors.digest() for tensors in (first.received, first.beside, trained)]

    parting = strategy.finish(first, trained, num_steps=3)

    slots = first.received.manifest()
    assert strategy.begin(first).manifest() == parting.adapter.manifest() == slots
    assert set(strategy.uplink(SLOTS)) <= set(slots)
    assert strategy.broadcast(SLOTS, state).manifest() == strategy.beside(SLOTS).down
    assert parting.beside.manifest() == strategy.beside(SLOTS).up
    names = {spec.name for spec in (*strategy.beside(SLOTS).down, *strategy.beside(SLOTS).up)}
    assert not names & {slot.name for slot in SLOTS}
    assert bool(names) == promises.sends_beside
    assert (parting.adapter != trained) == promises.rewrites
    assert strategy.remembers() == bool(parting.memory) == promises.remembers
    assert [tensors.digest() for tensors in (first.received, first.beside, trained)] == before


@pytest.mark.parametrize("name", having(remembers=True))
def test_what_a_client_kept_changes_its_next_turn_and_keeps_its_shape(name: str) -> None:
    strategy = strategy_of(name)
    state = started(strategy)
    fresh = turn_of(strategy, state, round_number=4, memory=Tensors())
    kept = strategy.finish(fresh, draw("trained"), num_steps=3).memory
    later = turn_of(strategy, state, round_number=4, memory=kept)

    partings = [strategy.finish(turn, draw("again"), num_steps=3) for turn in (fresh, later)]
    penalties = [strategy.penalty(strategy.begin(turn), turn) for turn in (fresh, later)]

    assert partings[1].memory.manifest() == kept.manifest()
    assert strategy.begin(fresh) != strategy.begin(later) or penalties[0] != penalties[1]


@every_strategy
def test_plain_settings_are_refused_by_name_where_they_would_be_wrong(name: str) -> None:
    strategy = strategy_of(name)
    if not PROMISES[name].needs_settings:
        strategy.check_settings(train=Train(), evaluate=Evaluate())
        return
    with pytest.raises(UnsupportedError, match=rf"^strategy '{name}' .*(train|evaluate)\.\w+ = [^\n]*$"):
        strategy.check_settings(train=Train(), evaluate=Evaluate())


@pytest.mark.parametrize(
    ("name", "options", "period"),
    [
        *((name, {}, 1) for name in PROMISES),
        *((name, {"client_rank": (1, 2, 1)}, 3) for name in ("fedex_lora", "flexlora", "flora", "florist", "hetlora")),
        ("hetlora", {"prune": 0.5}, None),
        ("dylora", {"frozen": True}, 1),
    ],
)
def test_what_clients_are_asked_repeats_after_its_period(
    name: str, options: dict[str, Any], period: int | None
) -> None:
    """So that whoever wants to know what a million are asked need not ask for each."""
    module = plugins.load("strategy", name)
    strategy: Strategy[Any] = module.make(module.Options.model_validate(options))
    state = started(strategy)
    assert strategy.period() == period
    for number in (1, 2, 3):
        everyone = [strategy.directive(SLOTS, state, round_number=number, client=client) for client in range(14)]
        told = list(strategy.directives(SLOTS, state, round_number=number, num_clients=14))
        assert everyone == [everyone[client % (period or 14)] for client in range(14)]
        assert told == everyone[: period or 14]
