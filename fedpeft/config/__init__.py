"""Experiments as values: one TOML file, checked as a whole, frozen, hashed."""

from fedpeft.config.base import Frozen
from fedpeft.config.choice import Choice, Choices
from fedpeft.config.load import glance, load, parse, read
from fedpeft.config.privacy import Privacy
from fedpeft.config.schema import (
    WITHOUT_EFFECT,
    Compute,
    Evaluate,
    Experiment,
    Feedback,
    Output,
    Pretrain,
    Rounds,
    Simulation,
    Train,
)

__all__ = [
    "WITHOUT_EFFECT",
    "Choice",
    "Choices",
    "Compute",
    "Evaluate",
    "Experiment",
    "Feedback",
    "Frozen",
    "Output",
    "Pretrain",
    "Privacy",
    "Rounds",
    "Simulation",
    "Train",
    "glance",
    "load",
    "parse",
    "read",
]
