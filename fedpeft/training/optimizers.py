"""The optimizer of one client's round, and how its learning rate falls over the rounds."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from fedpeft.config import Train

__all__ = ["learning_rate", "make_optimizer"]


def make_optimizer(train: Train, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Return a fresh optimizer over a client's trainable parameters.

    ``foreach`` goes through all of them at once: the same bits, and less to say for the many small ones of an adapter.
    """
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=train.weight_decay, foreach=True)
    return torch.optim.SGD(parameters, lr=rate, momentum=train.momentum, weight_decay=train.weight_decay, foreach=True)


def learning_rate(train: Train, round_number: int, num_rounds: int) -> float:
    """Return the learning rate of one round (first is 1): linear warm-up, then the schedule, never quite zero."""
    if round_number <= train.warmup_rounds:
        return train.learning_rate * round_number / (train.warmup_rounds + 1)
    progress = (round_number - 1 - train.warmup_rounds) / (num_rounds - train.warmup_rounds)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": (1.0 + math.cos(math.pi * progress)) / 2,
    }[train.schedule]
    return train.learning_rate * factor
