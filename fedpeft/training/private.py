"""Local training with example-level privacy: DP-SGD over the adapter, in any optimizer.

Abadi et al. (2016), arXiv 1607.00133, with Poisson batches. Each step: draw examples, take each one's own gradient the
way the adapter declares, cut it over all trained tensors together and add up (Opacus's optimizer does both), add noise,
divide by the constant batch size. What is added after that costs nothing: penalties of the parameters alone,
momentum, Adam's moments, weight decay. A gradient that is not finite counts as none. Ranks that do not train have
neither gradient nor noise. No loss is measured: nothing but the noised parameters leaves this function.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from fedpeft import seeds
from fedpeft.adapters.base import GradientSupport, Penalty
from fedpeft.config import Train
from fedpeft.errors import RunError, UnsupportedError
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.per_sample import Batch, Gradients, Losses, way
from fedpeft.privacy.randomness import Randomness
from fedpeft.tasks.base import Examples, Task
from fedpeft.timing import phase, timed
from fedpeft.training.loop import Outcome, autocast, counted, to_device
from fedpeft.training.optimizers import make_optimizer

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

__all__ = ["Private", "draw", "train_privately"]

_LEFT = ("grad_sample", "summed_grad")
"""Attributes that Opacus leaves on parameters."""


@final
@dataclass(frozen=True, kw_only=True)
class Private:
    """What makes a turn private."""

    mechanism: Mechanism
    support: GradientSupport
    noise: Randomness
    """Of this turn alone: who is in a batch, and the noise."""
    active: Mapping[str, Tensor]
    """Trained parameter -> mask that broadcasts to its shape, where only a part of it trains."""


def train_privately(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    examples: Examples,
    *,
    task: Task,
    train: Train,
    rate: float,
    seed: int,
    private: Private,
    precision: str = "float32",
    penalty: Callable[[], Penalty] = Penalty,
    after_step: Callable[[float], None] | None = None,
) -> Outcome:
    """Train the given parameters in place; with equal seed and noise the same bits.

    Raises:
        UnsupportedError: the adapter has no gradients of single examples, or a penalty that looks at data.
        RunError: a parameter is no longer finite, which tells only of noised values.
    """
    optimizer, total = _optimizer(train, parameters, rate, private), private.mechanism.steps
    model.train()
    try:
        with seeds.isolated(seed, "dropout"):
            for step in range(total):
                for rows in draw(examples, train.batch_size, private):
                    batch = _batch(task, rows, model)
                    _hand_over(_gradients(model, batch, _losses(task, precision), parameters, private), parameters)
                    with phase("privacy"):
                        optimizer.clip_and_accumulate()
                _step(optimizer, parameters, penalty(), private)
                if after_step is not None:
                    after_step((step + 1) / total)
    finally:
        _clear(parameters)
        model.eval()
    for name, parameter in parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            raise RunError(f"training diverged: {name!r} is not finite; lower train.learning_rate")
    return Outcome(num_steps=total, num_seen=0, train_loss=None)


@timed("data")
def _batch(task: Task, rows: list[Any], model: nn.Module) -> Batch | None:
    return counted(to_device(task.collate(rows), model)) if rows else None


def _losses(task: Task, precision: str) -> Losses:
    def losses(model: nn.Module, batch: Batch) -> Tensor:
        with autocast(model, precision):
            return task.losses(model, batch)

    return losses


def _optimizer(train: Train, parameters: Mapping[str, nn.Parameter], rate: float, private: Private) -> "DPOptimizer":
    from opacus.optimizers import DPOptimizer  # seconds, which a run without privacy need not wait for

    privacy = private.mechanism.privacy
    return DPOptimizer(
        make_optimizer(train, parameters.values(), rate),
        noise_multiplier=private.mechanism.noise_multiplier,
        max_grad_norm=privacy.clip,
        expected_batch_size=None,
        loss_reduction="sum",
    )


def draw(examples: Examples, most: int, private: Private) -> Iterator[list[Any]]:
    """Draw each example on its own, and yield those drawn, at most so many together; one empty batch where none is.

    What a gradient is made of is bounded in memory; who is drawn is not.
    """
    drawn = private.noise.uniform(len(examples)) < private.mechanism.sample_rate
    places = drawn.nonzero().flatten().tolist()
    for start in range(0, max(1, len(places)), most):
        yield [examples[place] for place in places[start : start + most]]


@timed("forward-backward")
def _gradients(
    model: nn.Module, batch: Batch | None, losses: Losses, parameters: Mapping[str, nn.Parameter], private: Private
) -> Gradients:
    """Return slot -> (batch, *shape), finite, zero where nothing trains, and cut by tensor where that is asked for."""
    if batch is None:
        return {name: parameter.new_zeros((0, *parameter.shape)) for name, parameter in parameters.items()}
    names = {parameter: name for name, parameter in parameters.items()}
    found = way(private.support)(model, batch, losses)
    own = {names[model.get_parameter(name)]: value for name, value in found.items()}
    sound = torch.stack([value.flatten(1).isfinite().all(1) for value in own.values()]).all(0)
    for name, value in own.items():
        mask = sound.reshape(-1, *[1] * (value.dim() - 1))
        kept = torch.where(mask, value, 0.0)
        own[name] = kept * private.active[name].to(kept) if name in private.active else kept
    if private.mechanism.privacy.clipping == "per_layer":
        return {name: _cut(value, private.mechanism.privacy.clip / len(own) ** 0.5) for name, value in own.items()}
    return own


def _cut(gradients: Tensor, norm: float) -> Tensor:
    """Cut one tensor's gradients (batch, *shape), each to this norm."""
    lengths = gradients.flatten(1).norm(dim=1)
    factors: Tensor = (norm / lengths.clamp(min=norm)).reshape(-1, *[1] * (gradients.dim() - 1))
    return gradients * factors


def _hand_over(gradients: Gradients, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        vars(parameter)["grad_sample"] = gradients[name]


def _step(optimizer: "DPOptimizer", parameters: Mapping[str, nn.Parameter], penalty: Penalty, private: Private) -> None:
    """Add noise, divide, add what is free, and move."""
    if penalty.per_sample is not None:
        raise UnsupportedError("privacy of examples: the adapter's penalty looks at data; take another adapter")
    with phase("privacy"):
        _hide(parameters, private)
    for name, parameter in parameters.items():
        assert parameter.grad is not None  # noqa: S101 - it has just been made
        parameter.grad /= private.mechanism.divisor
        if name in private.active:
            parameter.grad *= private.active[name].to(parameter.grad)
    if penalty.data_free is not None:
        penalty.data_free.backward()  # type: ignore[no-untyped-call]
    with phase("optimizer"):
        optimizer.original_optimizer.step()
    _clear(parameters)
    for parameter in parameters.values():
        vars(parameter)["summed_grad"] = None


def _hide(parameters: Mapping[str, nn.Parameter], private: Private) -> None:
    """Make each gradient of the sum and noise of its own: here, not in Opacus, whose generators can be guessed."""
    deviation = private.mechanism.noise_multiplier * private.mechanism.privacy.clip
    for parameter in parameters.values():
        noise = private.noise.gaussian(tuple(parameter.shape), deviation)
        parameter.grad = vars(parameter)["summed_grad"].reshape(parameter.shape) + noise.to(parameter)


def _clear(parameters: Mapping[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        for name in _LEFT:
            vars(parameter).pop(name, None)
        parameter.grad = None
