"""Tiny transformers of a few thousand parameters, built from configs: no download, no tokenizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from fedpeft.adapters.base import Adapter, Attached, Slot
from fedpeft.adapters.calibration import Statistics
from fedpeft.seeds import generator, isolated
from fedpeft.tensors import Tensors

WIDTH, INNER, VOCABULARY, BLOCKS = 16, 24, 40, 2


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One architecture: how it is built, what its head is, and inputs for it."""

    build: Callable[[], nn.Module]
    head: tuple[str, ...]
    inputs: Mapping[str, Tensor]


def _bert() -> Any:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        intermediate_size=INNER,
        max_position_embeddings=16,
        num_labels=3,
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config)


def _llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=INNER,
        max_position_embeddings=16,
        num_labels=3,
        pad_token_id=0,
        attn_implementation="eager",
    )


def _gpt2() -> Any:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=BLOCKS,
        n_head=2,
        n_inner=INNER,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config)


def _vit() -> Any:
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        intermediate_size=INNER,
        image_size=8,
        patch_size=4,
        num_labels=3,
        attn_implementation="eager",
    )
    return ViTForImageClassification(config)


def _text() -> dict[str, Tensor]:
    ids = torch.randint(1, VOCABULARY, (3, 5), generator=generator(0, "text"))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SAMPLES = {
    "bert": Sample(build=_bert, head=("classifier",), inputs=_text()),
    "llama": Sample(build=lambda: LlamaForCausalLM(_llama_config()), head=(), inputs=_text()),
    "llama_classifier": Sample(
        build=lambda: LlamaForSequenceClassification(_llama_config()), head=("score",), inputs=_text()
    ),
    "gpt2": Sample(build=_gpt2, head=(), inputs=_text()),
    "vit": Sample(
        build=_vit,
        head=("classifier",),
        inputs={"pixel_values": torch.randn(3, 3, 8, 8, generator=generator(0, "image"))},
    ),
}


def build(name: str) -> nn.Module:
    """Return the model in eval mode; the same weights each time, biases and norms away from their trivial values."""
    with isolated(1, name), torch.no_grad():
        model = SAMPLES[name].build().eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def logits(model: nn.Module, name: str) -> Tensor:
    """Return the logits on the architecture's inputs."""
    found: Tensor = model(**SAMPLES[name].inputs).logits
    return found


def random_state(attached: Attached, seed: int) -> Tensors:
    """Return random values for all exchanged slots."""
    return Tensors(
        (slot.name, 0.5 * torch.randn(slot.shape, generator=generator(seed, slot.name)))
        for slot in attached.slots
        if slot.travels
    )


def losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return one loss for each example: a fixed random linear form of its logits, squared, shape (batch,)."""
    found = model(**batch).logits.flatten(1)
    form = torch.randn(found.shape[1], generator=generator(0, "losses"))
    squared: Tensor = (found @ form / len(form) - 1).square()
    return squared


def statistics(adapter: Adapter, name: str) -> Statistics | None:
    """Return what the adapter's calibrator, if it has one, sees in the architecture's inputs."""
    calibrator = adapter.calibrator()
    return None if calibrator is None else calibrator.observe(build(name), dict(SAMPLES[name].inputs), losses)


def own_slots(attached: Attached) -> list[Slot]:
    """Return the slots that are not a head's."""
    return [slot for slot in attached.slots if slot.role != "head"]
