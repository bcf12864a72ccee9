"""A model written as anybody's: safetensors, config and tokenizer, read by ``from_pretrained``."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fedpeft.models._checkpoint import quiet

__all__ = ["write_plain"]


def write_plain(model: Any, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write the folder; a model of images has no tokenizer."""
    with quiet():
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
