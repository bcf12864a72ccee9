"""Adapters x strategies x privacy: what docs/compatibility.md accepts trains a round, and what it refuses is refused.

Every pair runs without privacy in test_variants. With it each strategy runs in some pair that is accepted, the ones
least used so far, since what privacy asks of the two is asked of each alone; and so does each adapter with privacy of
examples, which alone asks anything of it.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedpeft import plugins
from fedpeft.engines.inline import simulate
from fedpeft.errors import ConfigError, UnsupportedError
from tests.conformance.compatibility import accepted, private
from tests.conftest import merged, tiny
from tests.e2e.test_privacy import CLIENT, EXAMPLE

TABLES: dict[str, dict[str, Any]] = {"e": EXAMPLE, "c": CLIENT}
ONE_ROUND = {"rounds": {"num_rounds": 1}, "train": {"local_steps": 1}}


def covering(mark: str) -> list[tuple[str, str]]:
    """Return accepted pairs that have every strategy at least once, and with privacy of examples every adapter."""
    pairs, used, chosen = accepted(mark), Counter[str](), list[tuple[str, str]]()
    for place in (1, 0) if mark == "e" else (1,):
        for name in sorted({pair[place] for pair in pairs}):
            if place == 1 or not used[f"a {name}"]:
                least = min((p for p in pairs if p[place] == name), key=lambda p: (used[f"a {p[0]}"] + used[p[1]], p))
                chosen.append(least)
                used.update([f"a {least[0]}", least[1]])
    return chosen


CASES = [(mark, *pair) for mark in TABLES for pair in covering(mark)]


def test_the_pairs_that_run_have_every_adapter_and_every_strategy_that_privacy_goes_with() -> None:
    assert {adapter for mark, adapter, _ in CASES if mark == "e"} == set(plugins.names("adapter"))
    for mark in TABLES:
        ran = {strategy for case, _, strategy in CASES if case == mark}
        assert ran == {strategy for _, strategy in accepted(mark)}
    assert len(accepted("e")) > len(accepted("c")) > 20


@pytest.mark.parametrize(("mark", "adapter", "strategy"), CASES)
def test_a_pair_trains_with_privacy_and_is_charged(tmp_path: Path, mark: str, adapter: str, strategy: str) -> None:
    changes = merged(private(strategy, adapter, {**TABLES[mark], "noise": "reproducible"}), ONE_ROUND)

    summary = simulate(tiny(tmp_path / "run", **changes))

    assert summary["privacy"]["charged_rounds"] == 1
    assert summary["privacy"]["epsilon"] <= 8.0
    assert summary["num_failures"] == 0


REFUSED = [
    (mark, strategy)
    for mark in TABLES
    for strategy in plugins.names("strategy")
    if strategy not in {accepted_one for _, accepted_one in accepted(mark)}
]


@pytest.mark.parametrize(("mark", "strategy"), REFUSED)
def test_a_strategy_that_privacy_does_not_go_with_is_refused_before_anything_is_written(
    tmp_path: Path, mark: str, strategy: str
) -> None:
    with pytest.raises((ConfigError, UnsupportedError), match=r"plain sum|nothing measured on private data"):
        simulate(tiny(tmp_path / "run", **private(strategy, "lora", TABLES[mark])))

    assert not (tmp_path / "run").exists()
