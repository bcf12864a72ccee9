"""What an experiment's [privacy] table comes to, and what is refused since the stated epsilon would not hold."""

from typing import Any

import pytest

from fedpeft.config import Privacy, Rounds, Train
from fedpeft.errors import ConfigError, RunError
from fedpeft.privacy.accounting import epsilon
from fedpeft.privacy.mechanism import Mechanism, mechanism

EXAMPLE: dict[str, Any] = {"unit": "example", "delta": 1e-5, "clip": 1.0, "sample_rate": 0.1, "accountant": "rdp"}
CLIENT: dict[str, Any] = {"unit": "client", "delta": 1e-5, "clip": 1.0, "accountant": "rdp"}


def made(table: dict[str, Any], *, num_clients: int = 10, train: Any = None, **rounds: Any) -> Mechanism:
    return mechanism(
        Privacy.model_validate(table),
        train=Train.model_validate(train or {"local_steps": 5, "batch_size": 8}),
        rounds=Rounds.model_validate({"num_rounds": 4, **rounds}),
        num_clients=num_clients,
    )


def test_every_step_of_every_round_is_composed() -> None:
    found = made({**EXAMPLE, "noise_multiplier": 1.5})

    assert (found.steps, found.divisor, found.std) == (5, 8.0, 1.5)
    expected = epsilon(noise_multiplier=1.5, sample_rate=0.1, steps=20, delta=1e-5, accountant="rdp")
    assert found.budget == found.spent(4) == expected > found.spent(3) > found.spent(0) == 0


def test_an_epoch_is_as_many_steps_as_the_rate_says_whatever_a_client_holds() -> None:
    assert made({**EXAMPLE, "noise_multiplier": 1.0}, train={"local_epochs": 3, "batch_size": 8}).steps == 30


def test_noise_follows_from_the_budget_and_spare_rounds_are_in_it() -> None:
    plain, spare = (made({**EXAMPLE, "epsilon": 2.0, "spare_rounds": n}) for n in (0, 2))

    assert 1.99 < plain.spent(4) <= 2.0
    assert spare.noise_multiplier > plain.noise_multiplier
    spare.require(6)
    with pytest.raises(RunError, match=r"5th charged .* the budget is 2 at delta 1e-05; nothing was sent"):
        plain.require(5)


def test_clients_drawn_on_their_own_are_amplified_and_the_divisor_is_the_expected_cohort() -> None:
    found = made({**CLIENT, "noise_multiplier": 2.0}, clients_per_round=2, sampling="poisson", num_clients=20)

    assert (found.sample_rate, found.steps, found.divisor, found.std) == (0.1, 1, 2.0, 2.0)
    assert made({**CLIENT, "noise_multiplier": 2.0}).sample_rate == 1.0


def test_of_known_cohorts_nothing_is_amplified_and_one_whom_every_round_asks_is_allowed_for() -> None:
    fixed: dict[str, Any] = {"clients_per_round": 2, "num_clients": 20}
    found = made({**CLIENT, "epsilon": 3.0, "cohorts": "known"}, **fixed)
    assert (found.sample_rate, found.steps, found.divisor) == (1.0, 1, 2.0)
    expected = epsilon(noise_multiplier=found.noise_multiplier, sample_rate=1.0, steps=4, delta=1e-5, accountant="rdp")
    assert found.spent(4) == expected == pytest.approx(3.0, rel=2e-3)
    said = found.statement(2)
    assert (said["adjacency"], said["epsilon"]) == ("one client's updates left out", found.spent(2))
    assert "nothing amplified" in said["sampling"]
    assert "that asked it" in said["composition"]


def test_few_clients_may_carry_the_noise_of_a_large_cohort_and_say_so() -> None:
    large = {**CLIENT, "delta": 1e-7, "noise_multiplier": 1.0, "population": 1_000_000, "cohort": 10_000}

    found = made(large, num_clients=10)

    assert found.sample_rate == 0.01
    assert found.std / found.divisor == pytest.approx(1.0 / 10_000)
    assert found.statement(4)["valid_for"] == "simulated at 10 clients a round, valid at 10000 of 1000000"


def test_an_adaptive_clip_and_its_count_cost_together_what_was_planned() -> None:
    plain, found = (made({**CLIENT, "noise_multiplier": 1.0, **extra}) for extra in ({}, {"adaptive": {}}))
    assert found.bit_noise == pytest.approx(3.562, abs=1e-3)
    assert found.update_noise == pytest.approx(1.01)
    assert found.update_noise**-2 + (2 * 3.562) ** -2 == pytest.approx(1.0, abs=1e-4)
    assert found.spent(4) == plain.spent(4)

    many = made({**CLIENT, "delta": 1e-6, "noise_multiplier": 1.0, "adaptive": {}}, num_clients=100)
    assert (many.bit_noise, many.update_noise) == (5.0, pytest.approx(0.99**-0.5))
    with pytest.raises(ConfigError, match=r"bit_noise = 0\.5.* more than half the noise multiplier, 0\.5"):
        made({**CLIENT, "noise_multiplier": 1.0, "adaptive": {"bit_noise": 0.5}})


def test_shares_of_noise_are_as_large_as_the_fewest_replies_must_have_them() -> None:
    found = made({**CLIENT, "noise_multiplier": 2.0, "placement": "distributed"}, min_clients=4)
    assert (found.std, found.shares, found.share_std) == (2.0, 4, 1.0)
    assert "single updates" in found.statement(1)["trust"]


@pytest.mark.parametrize(
    ("table", "settings", "said"),
    [
        ({**CLIENT, "epsilon": 1.0}, {"clients_per_round": 2}, "fixed size is not what the accountant"),
        ({**CLIENT, "epsilon": 1.0, "cohorts": "known"}, {}, "known ones are of fixed size, below all"),
        ({**CLIENT, "epsilon": 1.0, "cohorts": "known"}, {"clients_per_round": 2, "sampling": "poisson"}, "'known'"),
        ({**CLIENT, "epsilon": 1.0, "delta": 0.1}, {}, "expected less than 1 / 10"),
        ({**CLIENT, "epsilon": 1.0, "population": 100, "cohort": 5}, {}, "at least the 10 clients"),
        ({**EXAMPLE, "epsilon": 0.5, "noise_multiplier": 0.5}, {}, "more than privacy.epsilon = 0.5"),
        ({**EXAMPLE, "epsilon": 1.0}, {"train": {"max_grad_norm": 1.0}}, "privacy.clip cuts each example"),
    ],
)
def test_what_would_make_the_claim_untrue_is_refused(table: Any, settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(table, **settings)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": None},
        {"sample_rate": None},
        {"population": 9, "cohort": 3},
        {"accountant": "gdp"},
        {"clip": 0},
        {"adaptive": {}},
        {"placement": "distributed"},
        {"cohorts": "known"},
    ],
)
def test_tables_that_contradict_themselves_are_refused(change: dict[str, Any]) -> None:
    table = {key: value for key, value in {**EXAMPLE, "epsilon": 1.0, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=r"1 validation error for Privacy"):
        Privacy.model_validate(table)
