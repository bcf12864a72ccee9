"""Every strategy in the folder: a new file is tested by being there, once it says here what it promises."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import fedpeft.strategies
from fedpeft import plugins
from fedpeft.adapters.base import Algebra, Slot
from fedpeft.errors import RunError, TensorMismatchError, UnsupportedError
from fedpeft.seeds import generator
from fedpeft.strategies.base import ClientUpdate, Stack, State, Strategy, WeightedSum
from fedpeft.tensors import Tensors


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
    """An adapter without A/B pairs is refused, and one factor is held still."""
    moves_both: bool = False
    """Of one that needs pairs: both factors train, none is held still."""
    keeps_product: bool = False
    """One client gets the product of its factors back, in factors of the server's own; all else is its mean."""


PROMISES = {
    "fedadagrad": Promises(),
    "fedadam": Promises(),
    "fedavg": Promises(one_is_its_mean=True),
    "fedavgm": Promises(one_is_its_mean=True),
    "fedprox": Promises(one_is_its_mean=True),
    "fedyogi": Promises(),
    "ffa_lora": Promises(one_is_its_mean=True, needs_pairs=True),
    "flexlora": Promises(streams=False, needs_pairs=True, moves_both=True, keeps_product=True),
    "florist": Promises(streams=False, needs_pairs=True, moves_both=True, keeps_product=True),
    "krum": Promises(streams=False, least_clients=5),
    "lora_fair": Promises(one_is_its_mean=True, streams=False, needs_pairs=True, moves_both=True),
    "median": Promises(one_is_its_mean=True, streams=False),
    "rolora": Promises(one_is_its_mean=True, needs_pairs=True),
    "trimmed_mean": Promises(streams=False, least_clients=3),
}
SHARED = {"base", "held", "moments", "products", "repair", "stacking", "weighting"}
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
    """Return what checked clients would send: the slots of their directive, and a number of examples each."""
    updates = []
    for client, delta in enumerate(deltas):
        directive = strategy.directive(SLOTS, state, round_number=round_number, client=client)
        trained = delta if directive.train is None else delta.select(directive.train)
        updates.append(ClientUpdate(client=client, delta=trained, num_examples=client + 1))
    return updates


def total_of(strategy: Strategy[Any], updates: list[ClientUpdate]) -> Any:
    total = strategy.start()
    for update in updates:
        total = strategy.accumulate(total, update)
    return total


def one_round(strategy: Strategy[Any], state: State, deltas: list[Tensors], *, round_number: int = 1) -> State:
    updates = updates_of(strategy, state, deltas, round_number=round_number)
    return strategy.apply(SLOTS, state, total_of(strategy, updates))


def trained_slots(strategy: Strategy[Any], state: State, round_number: int = 1) -> set[str]:
    (update,) = updates_of(strategy, state, [state.adapter], round_number=round_number)
    return set(update.delta)


def restored(tensors: Tensors) -> Tensors:
    """The same through the bytes of a file, in the same order."""
    read = load(save(dict(tensors)))
    return Tensors((name, read[name]) for name in tensors)


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
    assert len(PROMISES) == 14
    assert {key: len(having(**{key: True})) for key in ("one_is_its_mean", "streams", "needs_pairs")} == {
        "one_is_its_mean": 7,
        "streams": 8,
        "needs_pairs": 5,
    }
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
    for slot, value in (state.adapter + delta).items():
        expected = value if slot in trained else state.adapter[slot]
        torch.testing.assert_close(found[slot], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in having(one_is_its_mean=False, keeps_product=False) if PROMISES[name].least_clients == 1]
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


@every_strategy
def test_zero_updates_change_nothing(name: str) -> None:
    strategy = strategy_of(name)
    state = started(strategy)

    found = one_round(strategy, state, [state.adapter.zeros()] * MANY)

    assert found.adapter.digest() == state.adapter.digest()


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
    assert (trained != set(state.adapter)) == (PROMISES[name].needs_pairs and not PROMISES[name].moves_both)
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
    assert one.memory.manifest() == started(strategy).memory.manifest()


@every_strategy
def test_updates_of_different_shapes_are_refused_by_name(name: str) -> None:
    strategy = strategy_of(name)
    state, wrong = started(strategy), dict(draw("delta"))
    wrong["layer.1.lora_B"] = torch.zeros(4, 1)

    with pytest.raises(TensorMismatchError, match=r"layer\.1\.lora_B \[4, 1\]"):
        one_round(strategy, state, [*[draw("delta")] * (MANY - 1), Tensors(wrong)])
    with pytest.raises(TensorMismatchError, match=r"layer\.1\.lora_B \[4, 1\]"):
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
    assert sizes <= set(range(draw("delta").num_elements + 1))


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
        strategy.apply(SLOTS, state, total_of(strategy, given)).adapter
        for given in (updates, [updates[client] for client in order])
    )

    assert one.digest() == two.digest()


@pytest.mark.parametrize("name", having(streams=True))
def test_a_sum_in_another_order_is_the_same_but_for_rounding(name: str) -> None:
    strategy = strategy_of(name)
    state = started(strategy)
    updates = updates_of(strategy, state, [draw("delta", client) for client in range(MANY)])

    one, two = (strategy.apply(SLOTS, state, total_of(strategy, given)).adapter for given in (updates, updates[::-1]))

    for slot in one:
        torch.testing.assert_close(one[slot], two[slot], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", having(needs_pairs=True))
def test_an_adapter_without_pairs_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"^strategy '{name}' .* no pairs [^\n]*$"):
        strategy_of(name).check(SLOTS[-1:])


@pytest.mark.parametrize("name", having(needs_pairs=False))
def test_any_other_strategy_serves_an_adapter_without_pairs(name: str) -> None:
    strategy_of(name).check(SLOTS[-1:])
