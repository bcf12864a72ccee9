"""Heads that are awkward to save: peft matches modules_to_save by the bare end of a name, and adds names of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedpeft.adapters.base import head_bounds
from fedpeft.adapters.lora import Options, make
from fedpeft.seeds import isolated
from tests.adapters.models import random_state

TEXT = {"vocab_size": 40, "pad_token_id": 0, "num_labels": 3, "attn_implementation": "eager"}


def distilbert() -> Any:
    return DistilBertForSequenceClassification(DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=8, **TEXT))


def roberta() -> Any:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return RobertaForSequenceClassification(RobertaConfig(**sizes, **TEXT))


def built(build: Any, seed: int) -> Any:
    with isolated(seed):
        return build().eval()


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (distilbert, ("pre_classifier", "classifier")),
        (distilbert, ("classifier",)),
        (distilbert, ()),
        (roberta, ("classifier",)),
        (roberta, ("classifier.out_proj",)),
    ],
)
def test_the_whole_head_comes_back_on_a_base_whose_own_head_differs(
    build: Any, head: tuple[str, ...], tmp_path: Path
) -> None:
    adapter, base = make(Options(rank=2)), built(build, 1)
    plan = adapter.plan(base, seed=3)
    attached = adapter.attach(base, plan).with_bound(head_bounds(base, head))
    attached.write(random_state(attached, 1))

    adapter.save(attached, plan, tmp_path, base="b", revision=None)

    other = built(build, 2)
    other.base_model.load_state_dict(built(build, 1).base_model.state_dict())
    loaded = PeftModel.from_pretrained(other, str(tmp_path))
    ids = torch.arange(10).reshape(2, 5) + 2
    torch.testing.assert_close(loaded(input_ids=ids).logits, base(input_ids=ids).logits, rtol=0, atol=1e-6)
