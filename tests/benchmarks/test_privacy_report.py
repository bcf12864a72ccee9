"""What the privacy benchmark's section says of given runs, by hand."""

from typing import Any

import pytest

from benchmarks import privacy_report


def ran(strategy: str, rate: float, seed: int, accuracy: float, **fields: Any) -> dict[str, Any]:
    common = {"rank": 8, "epsilon": None, "noise": None, "cohort": None, "bytes_up": 2_000_000}
    return {**common, "strategy": strategy, "rate": rate, "seed": seed, "accuracy": accuracy, **fields}


@pytest.fixture(autouse=True)
def drawings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(privacy_report, "draw", lambda name, title, series, across: drawn.update({name: series}))
    return drawn


def test_the_grid_the_worst_and_the_fall_to_the_next_rate(drawings: dict[str, Any]) -> None:
    tuning = [
        ran(name, rate, 100, accuracy, epsilon=1.0)
        for name, row in (("fedavg", (0.5, 0.7, 0.2)), ("ffa_lora", (0.4, 0.6, 0.66)))
        for rate, accuracy in zip((0.3, 1.0, 3.0), row, strict=True)
    ]
    runs = [ran("fedavg", 1.0, seed, accuracy, epsilon=1.0) for seed, accuracy in ((0, 0.6), (1, 0.7))]

    said = privacy_report.section({"x_example": {"tuning": tuning, "runs": runs}})

    assert "| 1 | LoRA | 8 | 1 | 65.0 ± 5.0 (2) | 50.0 / 70.0 / 20.0 | 20.0 | 50.0 |" in said
    assert "| 1 | FFA-LoRA | 8 | - | - | 40.0 / 60.0 / 66.0 | 40.0 | - |" in said
    assert drawings["privacy_x_example_8"]["LoRA, 1"] == [(0.0, 50.0), (1.0, 70.0), (2.0, 20.0)]


def test_what_privacy_costs_is_of_the_same_seeds_and_sizes_are_beside_it(drawings: dict[str, Any]) -> None:
    curve = {"1": 0.5, "2": 0.6}
    private = {"epsilon": 2.0, "cohort": 10_000, "noise_multiplier": 0.8, "curve": curve}
    runs = [ran("dylora", 0.2, 0, 0.6, **private), ran("dylora", 0.2, 1, 0.7, **private)]
    free = [ran("dylora", 0.2, 0, 0.65, curve={"1": 0.6, "2": 0.7})]
    smaller = [ran("dylora", 0.2, 0, 0.4, **{**private, "cohort": 30, "noise_multiplier": 1.0})]

    said = privacy_report.section({"x_client": {"tuning": [], "runs": runs, "free": free, "smaller": smaller}})

    assert "| DyLoRA | 8 | 0.2 | 65.0 ± 5.0 (2) | 65.0 ± 0.0 (1) | 5.0 | 2.0 |" in said
    assert "| epsilon 2 | 50.0 | 60.0 |" in said
    assert "| no privacy | 60.0 | 70.0 |" in said
    assert "| 3,000 | 30 | 1.00 | 40.0 ± 0.0 (1) | 25.0 |" in said
    assert "| 1,000,000 | 10,000 | 0.80 | 60.0 ± 0.0 (1) | 5.0 |" in said
    assert drawings["privacy_x_client"]["epsilon 2"] == [(0.0, 50.0), (1.0, 60.0)]


def test_where_the_noise_counts_each_method_has_its_best_rate() -> None:
    runs = [
        ran(name, rate, 0, accuracy, noise=2.0)
        for name, row in (("fedavg", (0.5, 0.2)), ("ffa_lora", (0.4, 0.6)))
        for rate, accuracy in zip((0.3, 1.0), row, strict=True)
    ]
    said = privacy_report.section({"x_noise": {"runs": runs}, "x_client": {"tuning": [], "runs": [], "free": []}})
    assert "| 2 | 8 | 50.0 | 60.0 | +10.0 | 50.0 / 20.0 | 40.0 / 60.0 |" in said
    assert "x_client" not in said
