"""The local loop on a model of one weight, where every number can be worked out by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from fedpeft.adapters.base import Penalty
from fedpeft.config import Train
from fedpeft.errors import RunError
from fedpeft.tasks.base import Batch, Examples, Row, Task
from fedpeft.training.loop import Outcome, evaluate, train_locally


@final
class Weight(nn.Module):
    """The model: one number, and some noise in training if asked."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0))
        self.dropout = nn.Dropout(dropout)


@final
class Product(Task):
    """The loss of x is w x."""

    kind = "sequence_classification"

    def columns(self) -> tuple[str, ...]:
        return ("x",)

    def encode(self, data: Dataset, tokenizer: object) -> Examples:
        return [{"x": torch.tensor(float(value))} for value in data["x"]]

    def collate(self, rows: Sequence[Row]) -> Batch:
        return {"x": torch.stack([row["x"] for row in rows])}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Weight)
        return model.dropout(model.w * batch["x"])

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        assert not model.training
        return {"loss": float(self.losses(model, batch).sum()), "weight": float(len(batch["x"]))}

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        return {"loss": totals["loss"] / totals["weight"]}

    def predict(self, model: nn.Module, tokenizer: object, inputs: object, labels: object) -> list[str]:
        return []


def rows(*values: float) -> Examples:
    return [{"x": torch.tensor(value)} for value in values]


def trained(model: Weight, examples: Examples, *, penalty: Any = Penalty, seed: int = 0, **settings: Any) -> Outcome:
    train = Train(optimizer="sgd", **settings)
    parameters = {"w": model.w}
    return train_locally(model, parameters, examples, task=Product(), train=train, rate=0.1, seed=seed, penalty=penalty)


@pytest.mark.parametrize(
    ("settings", "num_steps", "num_seen"),
    [
        ({"batch_size": 2}, 3, 5),
        ({"batch_size": 2, "local_epochs": 2}, 6, 10),
        ({"batch_size": 9}, 1, 5),
        ({"batch_size": 2, "local_steps": 2}, 2, 4),
        ({"batch_size": 2, "local_steps": 4}, 4, 7),
    ],
)
def test_steps_and_examples_are_counted(settings: dict[str, int], num_steps: int, num_seen: int) -> None:
    outcome = trained(Weight(), rows(1, 1, 1, 1, 1), **settings)
    assert (outcome.num_steps, outcome.num_seen) == (num_steps, num_seen)


def test_each_step_follows_the_mean_gradient_of_its_batch() -> None:
    model = Weight()
    outcome = trained(model, rows(1, 2, 3), batch_size=3, local_steps=2)
    assert model.w.item() == pytest.approx(2 - 2 * 0.1 * 2)
    assert outcome.train_loss == pytest.approx((2.0 * 2 + 1.8 * 2) / 2)
    assert not model.training


def test_the_loss_is_the_mean_over_examples_not_over_batches() -> None:
    outcome = trained(Weight(), rows(1, 1, 1), batch_size=2)
    assert outcome.train_loss == pytest.approx((2 * 2.0 + 1 * 1.9) / 3)


def test_penalties_enter_the_gradient_and_not_the_loss() -> None:
    model = Weight()
    both = Penalty(per_sample=torch.stack([model.w * 2, model.w * 4]), data_free=model.w * 5)
    outcome = trained(model, rows(1, 1), penalty=lambda: both, batch_size=2)
    assert model.w.item() == pytest.approx(2 - 0.1 * (1 + 3 + 5))
    assert outcome.train_loss == pytest.approx(2.0)


def test_clipping_sees_what_comes_of_the_data_and_not_a_penalty_of_parameters_alone() -> None:
    model = Weight()
    both = Penalty(per_sample=torch.stack([model.w * 2, model.w * 4]), data_free=model.w * 5)
    trained(model, rows(1, 1), penalty=lambda: both, batch_size=2, max_grad_norm=0.5)
    assert model.w.item() == pytest.approx(2 - 0.1 * (0.5 + 5))


def test_after_each_step_the_share_of_all_steps_is_told() -> None:
    told: list[tuple[float, float]] = []
    model = Weight()
    train = Train(optimizer="sgd", batch_size=2, local_epochs=2)
    train_locally(
        model,
        {"w": model.w},
        rows(1, 1, 1),
        task=Product(),
        train=train,
        rate=0.1,
        seed=0,
        after_step=lambda done: told.append((done, model.w.item())),
    )
    assert told == [
        (share, pytest.approx(weight)) for share, weight in ((0.25, 1.9), (0.5, 1.8), (0.75, 1.7), (1, 1.6))
    ]


def test_a_penalty_is_asked_for_anew_at_each_step() -> None:
    model = Weight()
    trained(model, rows(0), penalty=lambda: Penalty(data_free=model.w**2 / 2), batch_size=1, local_steps=2)
    assert model.w.item() == pytest.approx(2 * 0.9 * 0.9)


def test_the_gradient_is_clipped_to_the_norm() -> None:
    model = Weight()
    trained(model, rows(100.0), max_grad_norm=0.5, batch_size=1)
    assert model.w.item() == pytest.approx(2 - 0.1 * 0.5, abs=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_the_remedy(value: float) -> None:
    with pytest.raises(RunError, match=r"training diverged: mean loss is (nan|inf); lower train\.learning_rate"):
        trained(Weight(), rows(1.0, value), batch_size=1)


def test_a_parameter_that_is_not_finite_is_named() -> None:
    model = Weight()
    with pytest.raises(RunError, match=r"training diverged: 'w' is not finite"):
        trained(model, rows(1.0), penalty=lambda: Penalty(data_free=model.w * math.inf))


def test_the_seed_decides_dropout_and_the_order_and_nothing_else_does() -> None:
    ends = []
    for seed, root in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(root)
        before, model = torch.get_rng_state(), Weight(dropout=0.5)
        trained(model, rows(1, 2, 3, 4, 5), seed=seed, batch_size=2)
        assert torch.equal(before, torch.get_rng_state())
        ends.append(model.w.item())
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_evaluation_adds_up_whatever_the_batches(batch_size: int) -> None:
    model = Weight(dropout=0.9).train()
    assert evaluate(model, rows(1, 2, 3), task=Product(), batch_size=batch_size) == {"loss": 12.0, "weight": 3.0}
    assert evaluate(model, [], task=Product(), batch_size=batch_size) == {}
