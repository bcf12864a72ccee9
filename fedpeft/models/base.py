"""What a model source gives: a frozen base with a fresh head, and what turns raw input into its input."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

from torch import nn
from transformers import PreTrainedTokenizerBase

__all__ = ["Kind", "Loaded", "ModelSource", "Wanted"]

Kind = Literal["sequence_classification", "causal_lm", "image_classification"]


@final
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a task needs of a model."""

    kind: Kind
    label_names: tuple[str, ...]
    """Empty for language modelling."""
    seed: int
    """Of a fresh head, and of the weights of a model built from a config."""


@final
@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A base model ready to be adapted."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    """None for images."""
    reference: str
    """The hub id or path that an exported adapter names as its base."""
    revision: str | None = None
    """The pinned hub revision, if it came from a hub."""


class ModelSource(ABC):
    """Where a base model comes from. Concrete classes are final and hold only their options."""

    @abstractmethod
    def load(self, wanted: Wanted) -> Loaded:
        """Build the model in eval mode, float32, on the CPU; the same arguments give the same bits.

        Raises:
            ModelError: not found, not safe to read, or not of the wanted kind; says what would be right.
        """
