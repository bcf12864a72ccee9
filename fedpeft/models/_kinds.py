"""What each kind of model is in transformers, and how a config names its classes."""

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from fedpeft.errors import ModelError
from fedpeft.models.base import Kind, Wanted

__all__ = ["FAMILIES", "set_labels"]

FAMILIES: dict[Kind, Any] = {
    "sequence_classification": AutoModelForSequenceClassification,
    "causal_lm": AutoModelForCausalLM,
    "image_classification": AutoModelForImageClassification,
}


def set_labels(config: Any, wanted: Wanted) -> None:
    """Write the wanted classes into a config, which also sets the size of the head; nothing for language models.

    Raises:
        ModelError: fewer than two classes for a classifier.
    """
    if wanted.kind == "causal_lm":
        return
    if len(wanted.label_names) < 2:
        raise ModelError(f"{wanted.kind} needs at least 2 label names, got {list(wanted.label_names)}")
    config.id2label = dict(enumerate(wanted.label_names))
    config.label2id = {name: index for index, name in enumerate(wanted.label_names)}
