"""Local training: the whole loop, on one page."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fedpeft import seeds
from fedpeft.adapters.base import Penalty
from fedpeft.config import Train
from fedpeft.data.batches import batch_indices, num_batches
from fedpeft.errors import RunError
from fedpeft.tasks.base import Batch, Examples, Task
from fedpeft.timing import current, phase, timed
from fedpeft.training.optimizers import make_optimizer

__all__ = ["Outcome", "autocast", "counted", "evaluate", "sound", "to_device", "train_locally"]


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one client's local training came to."""

    num_steps: int
    num_seen: int
    """Examples seen, repeats counted."""
    train_loss: float | None
    """Mean loss over the examples seen, penalties left out; None where it is not to be known."""


def train_locally(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    examples: Examples,
    *,
    task: Task,
    train: Train,
    rate: float,
    seed: int,
    precision: str = "float32",
    penalty: Callable[[], Penalty] = Penalty,
    after_step: Callable[[float], None] | None = None,
) -> Outcome:
    """Train the given parameters in place; the same seed gives the same bits.

    Clipping sees what comes of the data; the gradient of a penalty without data is added after it. ``after_step`` is
    told the share of this client's steps that is done.

    Raises:
        RunError: the loss or a parameter is no longer finite.
    """
    optimizer = make_optimizer(train, parameters.values(), rate)
    length = {"epochs": None if train.local_steps else train.local_epochs, "steps": train.local_steps}
    batches = batch_indices(len(examples), train.batch_size, seed=seed, **length)
    total = num_batches(len(examples), train.batch_size, **length)
    loss_sum, num_seen, num_steps = _zero(model), 0, 0
    model.train()
    with seeds.isolated(seed, "dropout"):
        for indices in batches:
            batch = _batch(examples, indices, task, model)
            losses = _losses(model, batch, task, precision)
            _differentiate(losses, penalty(), parameters.values(), train.max_grad_norm)
            with phase("optimizer"):
                optimizer.step()
            loss_sum += losses.detach().sum().to(torch.float64)
            num_seen, num_steps = num_seen + len(indices), num_steps + 1
            if after_step is not None:
                after_step(num_steps / total)
    model.eval()
    return sound(Outcome(num_steps=num_steps, num_seen=num_seen, train_loss=float(loss_sum) / num_seen), parameters)


@torch.inference_mode()
def evaluate(
    model: nn.Module, examples: Examples, *, task: Task, batch_size: int, precision: str = "float32"
) -> dict[str, float]:
    """Return the task's summed scores over all examples, for ``task.metrics`` or for adding up over clients."""
    model.eval()
    totals: dict[str, float] = {}
    for start in range(0, len(examples), batch_size):
        rows = [examples[index] for index in range(start, min(start + batch_size, len(examples)))]
        with autocast(model, precision):
            scores = task.score(model, to_device(task.collate(rows), model))
        for name, value in scores.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def autocast(model: nn.Module, precision: str) -> torch.autocast:
    """Compute in bfloat16 where that loses nothing that matters; parameters stay float32."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def to_device(batch: Batch, model: nn.Module) -> Batch:
    """Move a batch to where the model is."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _zero(model: nn.Module) -> Tensor:
    """Return a sum in float64 that lies with the model, so that no step waits for the device."""
    return torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)


@timed("data")
def _batch(examples: Examples, indices: list[int], task: Task, model: nn.Module) -> Batch:
    return counted(to_device(task.collate([examples[index] for index in indices]), model))


def counted(batch: Batch) -> Batch:
    """Tell the clock, if one runs, what the model is given: the scalars of its first input."""
    if (clock := current()) is not None:
        clock.count(next(iter(batch.values())).numel())
    return batch


@timed("forward-backward")
def _losses(model: nn.Module, batch: Batch, task: Task, precision: str) -> Tensor:
    with autocast(model, precision):
        return task.losses(model, batch)


@timed("forward-backward")
def _differentiate(
    losses: Tensor, penalty: Penalty, parameters: Collection[nn.Parameter], max_grad_norm: float | None
) -> None:
    """Fill gradients: of what comes of the data, clipped, and then of the parameters alone."""
    for parameter in parameters:
        parameter.grad = None
    total = losses.mean() if penalty.per_sample is None else losses.mean() + penalty.per_sample.mean()
    total.backward()  # type: ignore[no-untyped-call]
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if penalty.data_free is not None:
        penalty.data_free.backward()  # type: ignore[no-untyped-call]


def sound(outcome: Outcome, parameters: Mapping[str, Tensor]) -> Outcome:
    """Return the outcome of a training whose loss and parameters are finite.

    Raises:
        RunError: names the loss or the first parameter that is not, and the remedy.
    """
    if outcome.train_loss is not None and not math.isfinite(outcome.train_loss):
        raise RunError(f"training diverged: mean loss is {outcome.train_loss}; lower train.learning_rate")
    finite = torch.stack([torch.isfinite(parameter).all() for parameter in parameters.values()]).tolist()
    for name, well in zip(parameters, finite, strict=True):
        if not well:
            raise RunError(f"training diverged: {name!r} is not finite; lower train.learning_rate")
    return outcome
