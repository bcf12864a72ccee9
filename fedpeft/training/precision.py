"""Which number format trains faster on this machine: measured on the very model, in a moment."""

import time
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from fedpeft.tasks.base import Batch, Task
from fedpeft.training.loop import autocast, to_device
from fedpeft.training.workbench import Workbench

__all__ = ["Precision", "faster", "measured"]

Precision = Literal["float32", "bfloat16"]
_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
_REPEATS = 5
_GAIN = 1.1
"""So much faster must bfloat16 be, since its sums are coarser."""


def measured(bench: Workbench) -> dict[Precision, float]:
    """Return seconds of a forward and backward pass over held-out examples, the best of a few, taken in turns."""
    adapted, rows = bench.adapted, range(min(bench.experiment.train.batch_size, len(bench.held_out)))
    model = adapted.attached.model
    batch = to_device(adapted.task.collate([bench.held_out[at] for at in rows]), model)
    parameters = adapted.attached.parameters()
    best = dict.fromkeys(_PRECISIONS, float("inf"))
    for repeat in range(_REPEATS + 1):
        for precision in _PRECISIONS:
            seconds = _seconds(model, adapted.task, batch, parameters, precision)
            if repeat:  # the first time warms up
                best[precision] = min(best[precision], seconds)
    return best


def faster(seconds: Mapping[Precision, float]) -> Precision:
    """Return bfloat16 where it is clearly faster."""
    return "bfloat16" if seconds["bfloat16"] * _GAIN < seconds["float32"] else "float32"


def _seconds(
    model: nn.Module, task: Task, batch: Batch, parameters: Mapping[str, nn.Parameter], precision: Precision
) -> float:
    began = time.perf_counter()
    with autocast(model, precision):
        losses = task.losses(model, batch)
    found = torch.autograd.grad(losses.mean(), list(parameters.values()), allow_unused=True)
    sum(float(value.sum()) for value in found if value is not None)  # waits for the device
    return time.perf_counter() - began
