"""A client's own ledgers: what all its experiments cost together, and what a lifetime budget refuses."""

from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from fedpeft.errors import ConfigError, InputError, ResumeError, RunError
from fedpeft.privacy import accounting
from fedpeft.privacy.accounting import Releases, composed
from fedpeft.privacy.own import Lifetime, OwnLedger, spent_by_client
from tests.privacy.test_ledger import charge, of

WHOLE = tuple(range(2, 257))


def releases(*parts: tuple[float, float, int]) -> list[Releases]:
    return [Releases(noise_multiplier=z, sample_rate=q, steps=n) for z, q, n in parts]


def own(folder: Path, name: str = "a", lifetime: Lifetime | None = None, client: int = 3) -> OwnLedger:
    return OwnLedger(folder=folder, experiment=name * 40, client=client, lifetime=lifetime)


PARTS = ((1.1, 0.02, 300), (2.0, 1.0, 4), (0.8, 0.01, 100))


def test_experiments_compose_as_dp_accounting_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "ORDERS", WHOLE)
    oracle = RdpAccountant(WHOLE)
    for noise, rate, steps in PARTS:
        once = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
        oracle.compose(dp_event.SelfComposedDpEvent(once, steps))
    found = composed(releases(*PARTS), delta=1e-5, accountant="rdp")
    assert found == pytest.approx(oracle.get_epsilon(1e-5), rel=1e-3)
    alone = [composed(releases(part), delta=1e-5, accountant="rdp") for part in PARTS]
    assert max(alone) < found < sum(alone)


def test_unequal_gaussians_compose_to_one_by_either_accountant() -> None:
    """Without sampling, z = 3 once and z = 4 once are one release of (1/9 + 1/16)^(-1/2) = 2.4."""
    for accountant in ("rdp", "prv"):
        together = composed(releases((3.0, 1.0, 1), (4.0, 1.0, 1)), delta=1e-5, accountant=accountant)  # type: ignore[arg-type]
        one = composed(releases((2.4, 1.0, 1)), delta=1e-5, accountant=accountant)  # type: ignore[arg-type]
        assert together == pytest.approx(one, abs=0.011)
    assert composed([], delta=1e-5, accountant="rdp") == 0


def test_the_lifetime_holds_over_experiments_and_is_of_each_client(tmp_path: Path) -> None:
    made = of("example")
    lifetime = Lifetime(epsilon=composed(releases((2.0, 0.1, 6)), delta=1e-5, accountant="rdp"), delta=1e-5)
    for number in (1, 2):
        own(tmp_path, "a", lifetime).charge(charge(number, 3), made)
    own(tmp_path, "b", lifetime).charge(charge(1, 3), made)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    for name in ("a", "b"):
        with pytest.raises(RunError, match=r"client 3 to epsilon .* over its 2 experiments"):
            own(tmp_path, name, lifetime).charge(charge(3, 3), made)

    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    own(tmp_path, "b", lifetime, client=4).charge(charge(1, 4), made)
    spent = spent_by_client(tmp_path, delta=1e-5)
    assert spent[3] == {"example": pytest.approx(lifetime.epsilon)}
    assert 0 < spent[4]["example"] < lifetime.epsilon


def test_an_experiment_of_clients_counts_whole_since_nobody_sees_the_rounds_that_do_not_draw_it(tmp_path: Path) -> None:
    own(tmp_path).charge(charge(1, 3), of("client"))
    expected = composed(releases((2.0, 1.0, 3)), delta=1e-5, accountant="rdp")
    assert spent_by_client(tmp_path, delta=1e-5) == {3: {"client": pytest.approx(expected)}}


def test_one_budget_is_of_one_unit(tmp_path: Path) -> None:
    lifetime = Lifetime(epsilon=100.0, delta=1e-5)
    own(tmp_path, "a", lifetime).charge(charge(1, 3), of("example"))
    with pytest.raises(RunError, match=r"units \['client', 'example'\]"):
        own(tmp_path, "b", lifetime).charge(charge(1, 3), of("client"))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"noise": "reproducible"}, "taken away"), ({"population": 9000, "cohort": 90}, "larger federation")],
)
def test_what_cannot_be_counted_on_takes_no_part(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    made, lifetime = of("client", **options), Lifetime(epsilon=100.0, delta=1e-5)
    with pytest.raises(RunError, match=said):
        own(tmp_path, lifetime=lifetime).charge(charge(1, 3), made)
    assert not list(tmp_path.iterdir())
    own(tmp_path).charge(charge(1, 3), made)
    own(tmp_path, "b").charge(charge(1, 3), None)
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


@pytest.mark.parametrize("damage", ["{}", "no json", '{"unit": "example"}', None])
def test_terms_that_are_gone_or_damaged_stop_everything(tmp_path: Path, damage: str | None) -> None:
    own(tmp_path).charge(charge(1, 3), of("example"))
    (tmp_path / "notes.jsonl").write_text("not a ledger")
    (terms,) = tmp_path.glob("*.json")
    if damage is None:
        terms.unlink()
    else:
        terms.write_text(damage)
    with pytest.raises(ResumeError, match="what this ledger's charges cost is not known"):
        own(tmp_path).charge(charge(2, 3), of("example"))


def test_an_experiment_goes_on_with_the_noise_it_began_with_or_not_at_all(tmp_path: Path) -> None:
    own(tmp_path).charge(charge(1, 3), of("example"))
    with pytest.raises(ResumeError, match="other terms"):
        own(tmp_path).charge(charge(2, 3), of("example", noise_multiplier=1.0))


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(1.0, None), (None, 1e-5), (0.0, 1e-5), (1.0, 1.0), (float("nan"), 0.1)]
)
def test_half_a_budget_or_none_that_means_anything_is_refused(epsilon: float | None, delta: float | None) -> None:
    with pytest.raises(InputError, match="--here"):
        Lifetime.of(epsilon, delta, where="--here")
    assert Lifetime.of(None, None, where="--here") is None


def test_noise_that_is_none_is_refused_in_any_part() -> None:
    with pytest.raises(ConfigError, match="noise_multiplier"):
        composed(releases((1.0, 0.1, 1), (0.0, 0.1, 1)), delta=1e-5, accountant="rdp")
