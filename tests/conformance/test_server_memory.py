"""A strategy that streams holds as many bytes after a thousand clients as after ten."""

from typing import Any

import pytest

from benchmarks.server_memory import held_bytes
from fedpeft import plugins
from fedpeft.strategies.base import ClientUpdate, Strategy
from fedpeft.strategies.ranks import sliced
from tests.conformance.test_strategies import SLOTS, draw, having, like, started, strategy_of

STREAMING: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in having(streams=True)),
    ("dylora", {"frozen": True}),
    ("hetlora", {"client_rank": (1, 2)}),
    ("hetlora", {"client_rank": (1, 2), "missing": "keep", "prune": 0.5}),
]


def configured(name: str, options: dict[str, Any]) -> Strategy[Any]:
    module = plugins.load("strategy", name)
    made: Strategy[Any] = module.make(module.Options(**options))
    return made


def bytes_after(strategy: Strategy[Any], counts: tuple[int, ...]) -> list[int]:
    """Return the bytes behind the total's tensors after so many clients, none of whose updates anybody else keeps."""
    state, total, found = started(strategy), strategy.start(), []
    for client in range(max(counts)):
        directive = strategy.directive(SLOTS, state, round_number=1, client=client)
        asked = [spec.name for spec in directive.select(SLOTS, strategy.uplink(SLOTS))]
        delta = draw("delta", client % 7)
        update = ClientUpdate(
            client=client,
            delta=sliced(delta.select(asked), SLOTS, rank=directive.rank, held=directive.held),
            num_examples=client + 1,
            beside=like(strategy.beside(SLOTS).up, delta),
            directive=directive,
        )
        total = strategy.accumulate(total, strategy.prepare(SLOTS, state, update))
        if client + 1 in counts:
            found.append(held_bytes(total))
    return found


@pytest.mark.parametrize(("name", "options"), STREAMING, ids=lambda value: value if isinstance(value, str) else "")
def test_what_streams_holds_no_more_bytes_for_a_thousand_clients_than_for_ten(
    name: str, options: dict[str, Any]
) -> None:
    strategy = configured(name, options)

    ten, thousand = bytes_after(strategy, (10, 1000))

    beside = sum(spec.num_elements for spec in strategy.beside(SLOTS).up)
    assert 0 < ten == thousand <= 8 * (draw("delta").num_elements + beside)


@pytest.mark.parametrize("name", having(streams=False))
def test_what_stacks_holds_each_update_once_in_float32(name: str) -> None:
    strategy = strategy_of(name)

    assert bytes_after(strategy, (10, 50)) == [4 * count * draw("delta").num_elements for count in (10, 50)]
