"""Configs of small models by architecture, from one set of sizes; what each can do."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import BertConfig, GPT2Config, LlamaConfig, ViTConfig

from fedpeft.models._tokenizer import EOS_ID, NUM_TOKENS, PAD_ID
from fedpeft.models.base import Kind

__all__ = ["KINDS", "build_config"]

KINDS: dict[str, tuple[Kind, ...]] = {
    "bert": ("sequence_classification",),
    "llama": ("sequence_classification", "causal_lm"),
    "gpt2": ("sequence_classification", "causal_lm"),
    "vit": ("image_classification",),
}

_Builder = Callable[[Mapping[str, Any]], Any]


def build_config(architecture: str, sizes: Mapping[str, Any]) -> Any:
    """Return a transformers config; sizes are the fields of the tiny model's options."""
    builders: dict[str, _Builder] = {"bert": _bert, "llama": _llama, "gpt2": _gpt2, "vit": _vit}
    return builders[architecture](sizes)


def _bert(sizes: Mapping[str, Any]) -> Any:
    return BertConfig(
        vocab_size=NUM_TOKENS,
        pad_token_id=PAD_ID,
        max_position_embeddings=sizes["max_positions"],
        **_encoder(sizes),
    )


def _vit(sizes: Mapping[str, Any]) -> Any:
    image = {name: sizes[name] for name in ("image_size", "patch_size", "num_channels")}
    return ViTConfig(**image, **_encoder(sizes))


def _encoder(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_blocks(sizes),
        "hidden_dropout_prob": sizes["dropout"],
        "attention_probs_dropout_prob": sizes["dropout"],
    }


def _llama(sizes: Mapping[str, Any]) -> Any:
    return LlamaConfig(
        vocab_size=NUM_TOKENS,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        max_position_embeddings=sizes["max_positions"],
        attention_dropout=sizes["dropout"],
        use_cache=False,
        **_blocks(sizes),
    )


def _blocks(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": sizes["hidden_size"],
        "num_hidden_layers": sizes["num_layers"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": sizes["intermediate_size"],
    }


def _gpt2(sizes: Mapping[str, Any]) -> Any:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), sizes["dropout"])
    return GPT2Config(
        vocab_size=NUM_TOKENS,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        n_positions=sizes["max_positions"],
        n_embd=sizes["hidden_size"],
        n_layer=sizes["num_layers"],
        n_head=sizes["num_heads"],
        n_inner=sizes["intermediate_size"],
        use_cache=False,
        **dropout,
    )
