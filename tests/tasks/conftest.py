"""Small models and small data for every task."""

from collections.abc import Callable

import pytest
import torch
from datasets import Dataset

from fedpeft.models import tiny
from fedpeft.models.base import Kind, Loaded, Wanted

LABELS = ("a", "b", "c")
Load = Callable[[str, Kind], Loaded]


@pytest.fixture
def load() -> Load:
    def build(architecture: str, kind: Kind) -> Loaded:
        names = () if kind == "causal_lm" else LABELS
        options = tiny.Options.model_validate({"architecture": architecture})
        return tiny.make(options).load(Wanted(kind=kind, label_names=names, seed=5))

    return build


@pytest.fixture
def data() -> Dataset:
    """Rows of many lengths, an empty text among them."""
    return Dataset.from_dict(
        {
            "text": ["good", "a much longer text than the others", "", "bad one"],
            "prompt": ["2+2=", "", "say it: ", "a prompt that is rather long: "],
            "answer": ["4", "no prompt", "", "yes, and more"],
            "image": torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).tolist(),
            "label": [0, 1, 2, 0],
        }
    )
