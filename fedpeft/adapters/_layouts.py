"""Where a transformer's block keeps its key and value projections and the last layer of each sublayer.

Architectures share a few naming schemes. A layout is taken only if the model bears it out: each of its places must be
there, and equally often, once in every block.
"""

from collections import Counter
from dataclasses import dataclass
from typing import final

from torch import nn

from fedpeft.adapters._targets import linear_layers, place
from fedpeft.errors import UnsupportedError

__all__ = ["Layout", "layout"]


@final
@dataclass(frozen=True, kw_only=True)
class Layout:
    """Places within a block, as paths below it."""

    keys_values: tuple[str, ...]
    """Projections that make keys and values; one name where they are fused."""
    attention_output: str
    """The layer that brings attention back to the model's width, before the residual sum."""
    feed_forward_output: str
    """The layer that brings the feed-forward block back to the model's width, before the residual sum."""
    feed_forward_input: tuple[str, ...]
    """The layers whose output rows are the feed-forward channels; none where these and their gates are one layer's."""

    @property
    def places(self) -> tuple[str, ...]:
        """All places that a model must have."""
        return (*self.keys_values, self.attention_output, self.feed_forward_output)


def _layout(keys_values: str, attention_output: str, feed_forward_output: str, feed_forward_input: str = "") -> Layout:
    return Layout(
        keys_values=tuple(keys_values.split()),
        attention_output=attention_output,
        feed_forward_output=feed_forward_output,
        feed_forward_input=tuple(feed_forward_input.split()),
    )


_LAYOUTS = (
    # BERT, RoBERTa, ELECTRA
    _layout("attention.self.key attention.self.value", "attention.output.dense", "output.dense", "intermediate.dense"),
    # DeBERTa v2 and v3
    _layout(
        "attention.self.key_proj attention.self.value_proj",
        "attention.output.dense",
        "output.dense",
        "intermediate.dense",
    ),
    # DistilBERT
    _layout("attention.k_lin attention.v_lin", "attention.out_lin", "ffn.lin2", "ffn.lin1"),
    # ModernBERT
    _layout("attn.Wqkv", "attn.Wo", "mlp.Wo"),
    # GPT-2
    _layout("attn.c_attn", "attn.c_proj", "mlp.c_proj", "mlp.c_fc"),
    # GPT-NeoX, Pythia
    _layout("attention.query_key_value", "attention.dense", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"),
    # BLOOM, Falcon
    _layout("self_attention.query_key_value", "self_attention.dense", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"),
    # OPT
    _layout("self_attn.k_proj self_attn.v_proj", "self_attn.out_proj", "fc2", "fc1"),
    # Phi
    _layout("self_attn.k_proj self_attn.v_proj", "self_attn.dense", "mlp.fc2", "mlp.fc1"),
    # Llama, Mistral, Qwen, Gemma, SmolLM
    _layout("self_attn.k_proj self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj mlp.up_proj"),
    # ViT, DeiT, DINOv2, Swin
    _layout("attention.k_proj attention.v_proj", "attention.o_proj", "mlp.fc2", "mlp.fc1"),
)


def layout(model: nn.Module) -> Layout:
    """Return the layout of the model's blocks.

    Raises:
        UnsupportedError: none is borne out; names the places there are.
    """
    counts = Counter(place(path) for path in linear_layers(model))
    for candidate in _LAYOUTS:
        found = {counts[name] for name in candidate.places}
        if len(found) == 1 and 0 not in found:
            return candidate
    raise UnsupportedError(
        f"the blocks of {type(model).__name__} follow no layout known here; "
        f"name adapter.target_modules among: {', '.join(counts)}"
    )
