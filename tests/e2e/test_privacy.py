"""Federations with privacy: what they claim, what leaves a client, what is refused, what a second try costs."""

import json
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

import fedpeft.client
import fedpeft.server
from fedpeft.engines.inline import simulate
from fedpeft.errors import ConfigError, FedpeftError, InputError, ResumeError, RunError, UnsupportedError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds.guard import guard
from fedpeft.strategies.base import ClientUpdate
from fedpeft.training.workbench import assemble
from tests.conftest import tiny

EXAMPLE = {"unit": "example", "epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "sample_rate": 0.1, "accountant": "rdp"}
CLIENT = {"unit": "client", "epsilon": 8.0, "delta": 1e-5, "clip": 0.5, "accountant": "rdp"}
SHARED = {**CLIENT, "placement": "distributed"}
UNIFORM = {"name": "fedavg", "weighting": "uniform"}


def killed(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until round 1 has been released and not yet committed."""

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fedpeft.server, "_evaluate", dies)
        with pytest.raises(KeyboardInterrupt):
            simulate(experiment)


def private(out: Path | None, table: dict[str, Any], **changes: Any) -> Any:
    return tiny(out, **{"strategy": UNIFORM, **changes, "privacy": table})


@pytest.mark.parametrize("table", [EXAMPLE, CLIENT], ids=["example", "client"])
def test_a_run_says_what_it_spent_and_the_ledger_agrees(tmp_path: Path, table: dict[str, Any]) -> None:
    summary = simulate(private(tmp_path / "run", table))

    run = RunDirectory.open(tmp_path / "run")
    said = summary["privacy"]
    assert (said["unit"], said["charged_rounds"], said["budget"]) == (table["unit"], 3, 8.0)
    assert 7.9 < said["epsilon"] <= 8.0
    assert [charge.round for charge in run.ledger.charges()] == [1, 2, 3]
    records = run.records()
    assert [record.train_loss for record in records] == [None] * 4
    spent = [record.epsilon for record in records[1:]]
    assert spent == sorted(spent)
    assert spent[-1] == said["epsilon"]
    page = unescape((run.path / "report.html").read_text())
    words = ("unit", "epsilon", "delta", "adjacency", "sampling", "accountant", "trust", "composition", "randomness")
    assert all(f"{said[name]}" in page for name in words)
    with pytest.raises(InputError, match="holds a privacy ledger"):
        simulate(private(tmp_path / "run", table, output={"if_exists": "overwrite"}))


def test_nothing_of_the_data_but_the_noised_change_leaves_a_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients of very different data send headers that differ in their number and the body alone."""
    seen = []
    original = fedpeft.client.Update

    def watched(**fields: Any) -> Any:
        seen.append({name: value for name, value in fields.items() if name not in ("client", "envelope")})
        return original(**fields)

    monkeypatch.setattr(fedpeft.client, "Update", watched)
    simulate(private(tmp_path / "run", EXAMPLE, partition={"name": "dirichlet", "alpha": 0.3, "num_clients": 3}))

    assert len(seen) == 9
    assert all(each == {"num_examples": 1, "num_steps": 0, "train_loss": None, "seconds": 0.0} for each in seen)


def test_a_client_that_fails_keeps_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def secret(*_: Any, **__: Any) -> None:
        raise ValueError("the patient's name")

    monkeypatch.setattr(fedpeft.client, "train_turn", secret)
    with pytest.raises(RunError) as caught:
        simulate(private(tmp_path / "run", EXAMPLE))
    assert "patient" not in str(caught.value)
    assert "client's own log" in str(caught.value)


@pytest.mark.parametrize(
    "table",
    [EXAMPLE, CLIENT, {**CLIENT, "adaptive": {"learning_rate": 0.5}}, SHARED],
    ids=["example", "client", "adaptive", "distributed"],
)
def test_research_runs_resume_to_the_same_bits_and_are_charged_once(
    tmp_path: Path, table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {**table, "noise": "reproducible"}
    whole = simulate(private(tmp_path / "whole", table))
    killed(private(tmp_path / "torn", table), monkeypatch)
    assert len(RunDirectory.open(tmp_path / "torn").ledger.charges()) == 1

    resumed = simulate(private(tmp_path / "torn", table, output={"if_exists": "resume"}))

    assert resumed["adapter_digest"] == whole["adapter_digest"]
    assert resumed["privacy"] == whole["privacy"]
    assert "REPRODUCIBLE" in resumed["privacy"]["randomness"]


def test_a_run_whose_ledger_is_gone_does_not_go_on(tmp_path: Path) -> None:
    simulate(private(tmp_path / "run", CLIENT))
    run = RunDirectory.open(tmp_path / "run")
    (run.path / "summary.json").unlink()
    run.ledger.path.unlink()
    with pytest.raises(ResumeError, match=r"which had 3 charge\(s\), and 0 are here: what was spent is not known"):
        simulate(private(tmp_path / "run", CLIENT, output={"if_exists": "resume"}))


def test_a_secure_run_that_is_repeated_pays_again_and_ends_where_the_budget_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spare, ends in ((0, True), (1, False)):
        table, out = {**EXAMPLE, "spare_rounds": spare}, tmp_path / str(spare)
        killed(private(out, table), monkeypatch)
        again = private(out, table, output={"if_exists": "resume"})
        if ends:
            with pytest.raises(RunError, match=r"4th charged .*spare_rounds"):
                simulate(again)
            lines = (out / "rounds.jsonl").read_text().splitlines()
            assert json.loads(lines[-1])["round"] == 2
        else:
            assert simulate(again)["privacy"]["charged_rounds"] == 4


def test_ranks_that_were_not_drawn_keep_their_bits_whatever_noise_there_is(tmp_path: Path) -> None:
    bench = assemble(private(None, CLIENT, strategy={"name": "dylora", "weighting": "uniform"}))
    keeper = guard(bench, RunDirectory(tmp_path).ledger)
    assert keeper is not None
    slots, strategy = bench.adapted.attached.slots, bench.strategy
    state = strategy.init(slots, bench.adapted.initial)
    number = next(n for n in range(1, 50) if strategy.directive(slots, state, round_number=n, client=0).rank == 1)

    after = strategy.apply(slots, state, keeper.noised(strategy.start(), state, number))

    for slot in slots:
        was, now = state.adapter[slot.name], after.adapter[slot.name]
        if slot.role == "A":
            assert torch.equal(was[1:], now[1:])
            assert not torch.equal(was[0], now[0])
        elif slot.role == "B":
            assert torch.equal(was[:, 1:], now[:, 1:])
            assert not torch.equal(was[:, 0], now[:, 0])


def test_the_mean_is_over_the_expected_cohort_and_noise_stays_whoever_replies(tmp_path: Path) -> None:
    table = {**CLIENT, "epsilon": None, "noise_multiplier": 50.0}
    bench = assemble(private(None, {key: value for key, value in table.items() if value is not None}))
    keeper = guard(bench, RunDirectory(tmp_path).ledger)
    assert keeper is not None
    slots, strategy = bench.adapted.attached.slots, bench.strategy
    state = strategy.init(slots, bench.adapted.initial)
    large = state.adapter.map(lambda tensor: torch.full_like(tensor, 1e3))
    for replies in (0, 1, 3):
        moves = []
        for _ in range(30):
            total = strategy.start()
            for client in range(replies):
                update = ClientUpdate(client=client, delta=large, num_examples=5)
                total = strategy.accumulate(total, strategy.prepare(slots, state, keeper.limited(update, state)))
            after = strategy.apply(slots, state, keeper.noised(total, state, 1))
            moves.append(torch.cat([t.flatten() for t in (after.adapter - state.adapter).values()]))
        stacked = torch.stack(moves)
        assert abs(float(stacked.std()) / (50.0 * 0.5 / 3) - 1) < 0.05
        expected = replies * 0.5 / 3 / stacked.shape[1] ** 0.5
        deviation = 50.0 * 0.5 / 3 / stacked.numel() ** 0.5
        assert abs(float(stacked.mean()) - expected) < 5 * deviation


def test_an_empty_cohort_is_a_round_of_noise(tmp_path: Path) -> None:
    changes = {
        "partition": {"num_clients": 6},
        "rounds": {"clients_per_round": 1, "sampling": "poisson", "num_rounds": 8},
    }
    summary = simulate(private(tmp_path / "run", {**CLIENT, "noise": "reproducible"}, **changes))
    cohorts = [record.clients for record in RunDirectory.open(tmp_path / "run").records()[1:]]
    assert () in cohorts
    assert any(cohorts)
    assert summary["privacy"]["charged_rounds"] == 8


@pytest.mark.parametrize(
    ("table", "changes", "kind", "said"),
    [
        (EXAMPLE, {"strategy": {"name": "fedavg"}}, ConfigError, "write 'uniform'"),
        (EXAMPLE, {"evaluate": {"on_clients": True}}, ConfigError, "nothing measured on private data"),
        (CLIENT, {"strategy": {"name": "lora_fair", "weighting": "uniform"}}, UnsupportedError, "another query"),
        (CLIENT, {"strategy": {"name": "median"}}, UnsupportedError, "another query"),
        (CLIENT, {"rounds": {"clients_per_round": 2}}, ConfigError, "fixed size"),
        (SHARED, {"codec": {"name": "bfloat16"}}, ConfigError, "only the sum has noise enough"),
        (SHARED, {"rounds": {"clients_per_round": 2, "sampling": "poisson"}}, ConfigError, "all clients are asked"),
        ({**SHARED, "adaptive": {}}, {}, ConfigError, "no one counts norms"),
        (EXAMPLE, {"strategy": {"name": "dp_dylora"}}, ConfigError, "strategy.name = 'dylora' with a"),
        ({**EXAMPLE, "sample_rate": 2.0}, {}, ConfigError, "sample_rate"),
    ],
)
def test_what_is_not_provably_private_is_refused_before_anything_is_written(
    tmp_path: Path, table: dict[str, Any], changes: dict[str, Any], kind: type[FedpeftError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        simulate(private(tmp_path / "run", table, **changes))
    assert not (tmp_path / "run").exists()


def test_codecs_and_error_feedback_come_after_the_noise(tmp_path: Path) -> None:
    changes = {"codec": {"name": "compeft", "density": 0.2}, "feedback": {"up": True}}
    summary = simulate(private(tmp_path / "run", EXAMPLE, **changes))
    assert summary["privacy"]["charged_rounds"] == 3
    assert summary["num_failures"] == 0
