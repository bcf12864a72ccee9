"""Learning rates by hand, and the first steps of each optimizer."""

from typing import Any

import pytest
import torch
from torch import nn

from fedpeft.config import Train
from fedpeft.training.optimizers import learning_rate, make_optimizer


def rates(num_rounds: int, **settings: Any) -> list[float]:
    train = Train(learning_rate=0.8, **settings)
    return [learning_rate(train, number, num_rounds) for number in range(1, num_rounds + 1)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.8, 0.4 * (1 + 0.5**0.5), 0.4, 0.4 * (1 - 0.5**0.5)]),
    ],
)
def test_a_schedule_starts_at_the_rate_and_never_reaches_zero(schedule: str, expected: list[float]) -> None:
    assert rates(4, schedule=schedule) == pytest.approx(expected)


def test_warm_up_rises_in_equal_steps_and_the_schedule_takes_the_rounds_left() -> None:
    assert rates(7, schedule="linear", warmup_rounds=3) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.6, 0.4, 0.2])
    assert rates(3, warmup_rounds=1) == pytest.approx([0.4, 0.8, 0.8])


def test_one_round_has_the_whole_rate() -> None:
    for schedule in ("constant", "linear", "cosine"):
        assert rates(1, schedule=schedule) == [0.8]


def steps(train: Train, gradients: list[float]) -> list[float]:
    """Start at 1 and return where each gradient leads."""
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer, places = make_optimizer(train, [parameter], 0.1), []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        places.append(float(parameter.detach()))
    return places


def test_sgd_keeps_momentum_and_adds_weight_decay_to_the_gradient() -> None:
    assert steps(Train(optimizer="sgd"), [2.0, 2.0]) == pytest.approx([0.8, 0.6])
    assert steps(Train(optimizer="sgd", momentum=0.5), [2.0, 2.0]) == pytest.approx([0.8, 0.5])
    assert steps(Train(optimizer="sgd", weight_decay=0.5), [2.0]) == pytest.approx([1 - 0.1 * 2.5])


def test_adamw_moves_by_the_rate_and_decays_apart_from_the_gradient() -> None:
    assert steps(Train(), [2.0]) == pytest.approx([0.9])
    assert steps(Train(weight_decay=0.5), [2.0]) == pytest.approx([1 - 0.1 * 0.5 - 0.1])
