"""Where the noise of clients' privacy comes from: an adaptive clip that pays for its count, shares of many clients."""

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedpeft.client
from fedpeft.engines.inline import simulate
from fedpeft.errors import RunError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds.guard import Guard, guard
from fedpeft.rounds.tally import Tally
from fedpeft.strategies.base import ClientUpdate, State
from fedpeft.tensors import Tensors
from fedpeft.training.distributed import hidden
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import tiny

UNIFORM = {"name": "fedavg", "weighting": "uniform"}


def table(**changes: Any) -> dict[str, Any]:
    return {"unit": "client", "delta": 1e-5, "clip": 0.5, "accountant": "rdp", **changes}


def made(tmp_path: Path, privacy: dict[str, Any], *, clients: int, **rounds: Any) -> tuple[Workbench, Guard, State]:
    partition = {"name": "iid", "num_clients": clients}
    bench = assemble(tiny(None, strategy=UNIFORM, partition=partition, rounds=rounds, privacy=privacy))
    keeper = guard(bench, RunDirectory(tmp_path).ledger)
    assert keeper is not None
    return bench, keeper, bench.strategy.init(bench.adapted.attached.slots, bench.adapted.initial)


def counted(keeper: Guard, state: State, norms: np.ndarray) -> Tally:
    """Return what a round of updates of these norms tallies."""
    tally = Tally(total=None)
    for client, norm in enumerate(norms):
        delta = Tensors({"a": torch.tensor([norm, 0.0]).float()})
        tally.num_within += keeper.within(ClientUpdate(client=client, delta=delta, num_examples=1), state)
        tally.num_updates += 1
    return tally


def test_the_clip_moves_by_the_rule_where_noise_is_negligible(tmp_path: Path) -> None:
    adaptive = {"quantile": 0.3, "learning_rate": 0.4, "bit_noise": 1e-3}
    _, keeper, state = made(tmp_path, table(noise_multiplier=1e-5, adaptive=adaptive), clients=10)
    norms = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, np.nan, np.inf])

    tally = counted(keeper, state, norms)
    after = keeper.renewed(state, state, tally, 1)

    share = (4 - 4) / 10 + 0.5  # four within, four not, two that did not reply count for neither
    assert (tally.num_within, tally.num_updates) == (4, 8)
    assert np.log(keeper.clip(after) / 0.5) == pytest.approx(-0.4 * (share - 0.3), abs=1e-3)
    assert keeper.clip(state) == 0.5


def test_the_count_has_its_noise(tmp_path: Path) -> None:
    adaptive = {"learning_rate": 0.1, "bit_noise": 3.0}
    _, keeper, state = made(tmp_path, table(noise_multiplier=2.0, adaptive=adaptive), clients=10)
    tally = Tally(total=None, num_updates=10, num_within=5)
    moves = [np.log(keeper.clip(keeper.renewed(state, state, tally, 1)) / 0.5) for _ in range(4000)]
    assert abs(np.std(moves) / (0.1 * 3.0 / 10) - 1) < 0.06
    assert abs(np.mean(moves)) < 5 * 0.03 / 4000**0.5


def test_the_clip_finds_the_quantile_of_the_norms(tmp_path: Path) -> None:
    _, keeper, state = made(tmp_path, table(noise_multiplier=1.0, adaptive={"quantile": 0.8}), clients=50)
    draw, clips = np.random.default_rng(0), []
    for round_number in range(1, 151):
        norms = 20 * np.exp(0.5 * draw.normal(size=50))
        state = keeper.renewed(state, state, counted(keeper, state, norms), round_number)
        clips.append(keeper.clip(state))
    wanted = 20 * np.exp(0.5 * 0.8416)
    assert abs(np.log(np.mean(clips[-50:]) / wanted)) < 0.15


def test_each_round_cuts_and_hides_by_the_clip_of_the_one_before(tmp_path: Path) -> None:
    privacy = table(noise_multiplier=1.0, adaptive={"learning_rate": 1.0}, noise="reproducible")
    summary = simulate(tiny(tmp_path / "run", strategy=UNIFORM, privacy=privacy))
    clips = [record.clip for record in RunDirectory.open(tmp_path / "run").records()]
    assert clips[:2] == [None, 0.5]
    assert all(one is not None and two is not None and one != two for one, two in pairwise(clips[1:]))
    assert "updates 1.01" in summary["privacy"]["adaptive_clip"]

    _, keeper, state = made(tmp_path / "other", privacy, clients=3)
    wide = State(adapter=state.adapter, clip=Tensors({"clip": torch.tensor([40.0], dtype=torch.float64)}))
    slots, strategy = keeper.bench.adapted.attached.slots, keeper.bench.strategy
    large = state.adapter.map(lambda tensor: torch.full_like(tensor, 1e3))
    update = keeper.limited(ClientUpdate(client=0, delta=large, num_examples=9), wide)
    assert update.delta.norm() == pytest.approx(40.0, rel=1e-6)
    assert update.num_examples == 1
    moves = []
    for number in range(40):
        after = strategy.apply(slots, wide, keeper.noised(strategy.start(), wide, number))
        moves.append(torch.cat([tensor.flatten() for tensor in (after.adapter - wide.adapter).values()]))
    assert abs(float(torch.stack(moves).std()) / (1.01 * 40.0 / 3) - 1) < 0.05


def shares(bench: Workbench, delta: Tensors, *, client: int, draws: int) -> torch.Tensor:
    """Return what a client sends, drawn so often, one after the other."""
    sent = (hidden(bench, delta, client=client, round_number=number) for number in range(draws))
    return torch.cat([tensor.double().flatten() for each in sent for tensor in each.values()])


def test_whoever_drops_out_the_sum_of_enough_has_the_noise_that_is_claimed(tmp_path: Path) -> None:
    """All ways in which 7 clients may reply: 64 are of 4 or more, and of fewer the noise would be too little."""
    privacy, claimed = table(noise_multiplier=3.0, placement="distributed"), 3.0 * 0.5
    bench, keeper, _ = made(tmp_path, privacy, clients=7, min_clients=4)
    zero = bench.adapted.initial.zeros()
    sent = torch.stack([shares(bench, zero, client=client, draws=100) for client in range(7)])
    assert sent.shape[1] > 40_000
    for count in range(1, 8):
        for replied in combinations(range(7), count):
            deviation = float(sent[list(replied)].sum(0).std())
            assert abs(deviation / (claimed * (count / 4) ** 0.5) - 1) < 0.02
            assert deviation >= 0.98 * claimed if count >= 4 else deviation < 0.9 * claimed
    assert keeper.mechanism.spent(3) == pytest.approx(keeper.mechanism.budget)


def test_a_client_cuts_before_it_adds_its_share_and_nothing_finite_is_needed(tmp_path: Path) -> None:
    bench, _, _ = made(tmp_path, table(noise_multiplier=1e-4, placement="distributed"), clients=3)
    for value, norm in ((1e30, 0.5), (float("nan"), 0.0), (float("inf"), 0.0)):
        delta = bench.adapted.initial.map(lambda tensor, value=value: torch.full_like(tensor, value))
        assert hidden(bench, delta, client=0, round_number=1).norm() == pytest.approx(norm, abs=1e-2)


def test_of_too_few_nothing_is_released_and_the_mean_is_over_all_who_were_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = table(noise_multiplier=1.0, placement="distributed", noise="reproducible")

    def run(out: str) -> dict[str, Any]:
        return simulate(tiny(tmp_path / out, strategy=UNIFORM, rounds={"min_clients": 2}, privacy=privacy))

    assert run("all")["privacy"]["shares"].startswith("each client adds 1 / sqrt(2)")
    original = fedpeft.client.train_turn
    gone = {2}

    def fails(bench: Any, turn: Any, examples: Any, *, client: int) -> Any:
        if client in gone:
            raise ValueError("away")
        return original(bench, turn, examples, client=client)

    monkeypatch.setattr(fedpeft.client, "train_turn", fails)
    assert run("two")["num_failures"] == 3
    gone.add(1)
    with pytest.raises(RunError, match=r"1 client\(s\) replied, rounds.min_clients = 2"):
        run("one")
    assert [record.round for record in RunDirectory.open(tmp_path / "one").records()] == [0]
    assert len(RunDirectory.open(tmp_path / "one").ledger.charges()) == 1


def test_reproducible_noise_over_other_replies_is_other_noise(tmp_path: Path) -> None:
    """Else the two releases' difference would be the replies' difference, with no noise at all."""
    _, keeper, state = made(tmp_path, table(noise_multiplier=2.0, noise="reproducible"), clients=4)
    strategy, slots = keeper.bench.strategy, keeper.bench.adapted.attached.slots
    small = ClientUpdate(client=0, delta=state.adapter.map(lambda t: torch.full_like(t, 1e-9)), num_examples=1)
    fewer = strategy.accumulate(strategy.start(), strategy.prepare(slots, state, small))
    more = strategy.accumulate(fewer, strategy.prepare(slots, state, small))

    def released(total: Any, first: int = 1) -> torch.Tensor:
        """Return what 160 rounds release of it, so that their deviation is known to a quarter of a percent."""
        rounds = (keeper.noised(total, state, number).tensors for number in range(first, first + 160))
        return torch.cat([tensor.double().flatten() for noised in rounds for tensor in noised.values()])

    assert torch.equal(released(fewer), released(fewer))
    for other in (released(more), released(fewer, first=161)):
        assert len(other) > 40_000
        assert float((other - released(fewer)).std()) >= 0.99 * 2**0.5 * 2.0 * 0.5
