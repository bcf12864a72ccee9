"""Both accountants beside Google's dp-accounting, which shares no code with Opacus's, on fifty settings.

RDP is compared at whole orders: at fractional ones dp-accounting's series is a loose bound where much is sampled, and
excludes orders, while Opacus's is the integral (test_accounting.py).
"""

import itertools

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedpeft.privacy import accounting
from fedpeft.privacy.accounting import RESOLUTION, epsilon

WHOLE = tuple(range(2, 257))
SETTINGS = [
    *(
        (z, q, steps, 1e-5)
        for z, q, steps in itertools.product((0.8, 1.0, 2.0, 4.0), (0.01, 0.05, 0.3), (10, 100, 1000))
    ),
    *((z, 1.0, steps, delta) for z, steps, delta in itertools.product((2.0, 8.0), (1, 20), (1e-4, 1e-6, 1e-8))),
    (0.6, 0.001, 5000, 1e-7),
    (1.1, 0.02, 500, 1e-5),
]


def event(noise: float, rate: float, steps: int) -> dp_event.DpEvent:
    once = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    return dp_event.SelfComposedDpEvent(once, steps)


def test_there_are_fifty() -> None:
    assert len(set(SETTINGS)) == 50


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), SETTINGS)
def test_rdp_is_the_same_and_prv_is_never_below_the_privacy_loss_distribution(
    noise: float, rate: float, steps: int, delta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = {"noise_multiplier": noise, "sample_rate": rate, "steps": steps, "delta": delta}
    with_fractions = epsilon(**setting, accountant="rdp")
    found = epsilon(**setting, accountant="prv")
    monkeypatch.setattr(accounting, "ORDERS", WHOLE)
    by_rdp = RdpAccountant(WHOLE).compose(event(noise, rate, steps)).get_epsilon(delta)
    assert epsilon(**setting, accountant="rdp") == pytest.approx(by_rdp, rel=1e-3)

    by_pld = PLDAccountant(value_discretization_interval=1e-3).compose(event(noise, rate, steps)).get_epsilon(delta)
    assert by_pld <= with_fractions
    assert by_pld <= found <= by_pld + 3 * RESOLUTION + 0.01 * by_pld


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "expected"),
    [(1.0, 0.01, 1000, 2.107753), (1.1, 0.02, 500, 2.576589), (2.0, 0.2, 50, 3.869537), (4.0, 1.0, 10, 3.627852)],
)
def test_whole_orders_alone_give_the_published_reference(
    noise: float, rate: float, steps: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "ORDERS", WHOLE)
    found = epsilon(noise_multiplier=noise, sample_rate=rate, steps=steps, delta=1e-5, accountant="rdp")
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("noise", "steps", "exact"), [(4.0, 10, 3.341409), (1.0, 1, 4.377180)])
def test_prv_without_sampling_is_the_exact_gaussian_and_its_rounding(noise: float, steps: int, exact: float) -> None:
    found = epsilon(noise_multiplier=noise, sample_rate=1.0, steps=steps, delta=1e-5, accountant="prv")
    assert exact <= found <= exact + 2 * RESOLUTION
