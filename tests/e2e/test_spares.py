"""Spare clients: the bits of a cohort that never had them where nobody fails, and a full one where somebody does."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message

from fedpeft.config import Experiment
from fedpeft.engines.inline import InlineGrid, simulate
from fedpeft.engines.local import local_client_app
from fedpeft.errors import ConfigError, UnsupportedError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds.sampling import draw_cohort, draw_spares
from fedpeft.server import serve
from fedpeft.training.workbench import assemble
from tests.conftest import needed, tiny

ROUNDS = {"num_rounds": 2, "clients_per_round": 3}


def spared(out: Path, spare_clients: int = 2, **changes: Any) -> Experiment:
    rounds = {**ROUNDS, **({"spare_clients": spare_clients} if spare_clients else {})}
    return tiny(out, partition={"num_clients": 6}, rounds=rounds, **changes)


def federate(experiment: Experiment, *failing: int) -> dict[str, Any]:
    bench = assemble(experiment)
    honest = local_client_app(bench)

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] in failing:
            return Message(Error(1000, "RunError: out of memory"), reply_to=message)
        return honest(message, context)

    run, _ = RunDirectory.prepare(experiment)
    return serve(InlineGrid(app, num_clients=6), bench, run)


def test_spares_are_the_next_ones_of_the_same_draw() -> None:
    for number in range(1, 20):
        own = draw_cohort(10, 4, seed=5, round_number=number)
        more = draw_spares(10, 4, 3, seed=5, round_number=number)
        assert sorted({*own, *more}) == list(draw_cohort(10, 7, seed=5, round_number=number))
    assert len(draw_spares(5, 4, 3, seed=5, round_number=1)) == 1
    assert draw_spares(5, None, 3, seed=5, round_number=1) == draw_spares(5, 5, 3, seed=5, round_number=1) == ()


def test_where_nobody_fails_spares_change_no_bit(tmp_path: Path) -> None:
    with_them, without = simulate(spared(tmp_path / "with")), simulate(spared(tmp_path / "without", 0))
    assert with_them["adapter_digest"] == without["adapter_digest"]
    records = [RunDirectory.open(tmp_path / name).records() for name in ("with", "without")]
    assert [record.clients for record in records[0]] == [record.clients for record in records[1]]


def test_a_failed_clients_place_is_taken_by_the_first_spare(tmp_path: Path) -> None:
    own = draw_cohort(6, 3, seed=3, round_number=1)
    first, second = draw_spares(6, 3, 2, seed=3, round_number=1)
    federate(spared(tmp_path / "run", train={"local_steps": 1}), own[1])
    record = RunDirectory.open(tmp_path / "run").records()[1]
    assert record.clients == tuple(sorted((*own, first)))
    assert [failure.client for failure in record.failures] == [own[1]]
    assert second not in record.clients


def test_what_would_have_no_effect_or_lose_something_is_refused(tmp_path: Path) -> None:
    for changes, words in (
        (
            {"rounds": {"clients_per_round": 3, "sampling": "poisson", "spare_clients": 1}},
            "poisson cohort has no fixed",
        ),
        ({"rounds": {"spare_clients": 1}}, "has no effect without rounds.clients_per_round"),
        (
            {"rounds": {**ROUNDS, "spare_clients": 1}, "codec": {"name": "int8"}, "feedback": {"up": True}},
            "with feedback.up",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            tiny(tmp_path / "run", **changes)
    with pytest.raises(UnsupportedError, match=r"scaffold.* keep memories"):
        federate(spared(tmp_path / "run", **needed("scaffold")))
