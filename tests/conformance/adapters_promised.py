"""What each adapter of the folder promises with its default options: the suite holds it to this."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from fedpeft.adapters._targets import features, linear_layers, place

__all__ = ["PROMISES", "Layers", "Promise", "layers_of"]

Layers = list[tuple[str, int, int]]
"""(place in its block, d_in, d_out) of each linear layer of the body, in module order."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One adapter's."""

    count: Callable[[Layers], int]
    """Numbers that train, the head's left out."""
    start: float = 0.0
    """How far the adapted model's first logits may be from the base model's, absolutely; None at all by default."""
    saved: float = 1e-6
    """How far the saved folder's logits may be, in peft, from the adapted model's."""
    shifts: bool = False
    """Whether its frozen weights take a residual; the others refuse."""


def layers_of(model: nn.Module) -> Layers:
    """Return the linear layers of a model's body."""
    return [(place(path), *features(layer)) for path, layer in linear_layers(model).items()]


def _at(layers: Layers, ends: tuple[str, ...]) -> Layers:
    return [layer for layer in layers if layer[0].endswith(ends)]


KEYS_VALUES = ("key", "value", "k_proj", "v_proj", "c_attn")
ATTENTION_OUT = ("attention.output.dense", "self_attn.o_proj", "attn.c_proj", "attention.o_proj")
FEED_FORWARD_OUT = ("output.dense", "down_proj", "mlp.c_proj", "mlp.fc2")


def _ia3(layers: Layers) -> int:
    inner = [layer for layer in _at(layers, FEED_FORWARD_OUT) if not layer[0].endswith(ATTENTION_OUT)]
    return sum(d_out for _, _, d_out in _at(layers, KEYS_VALUES)) + sum(d_in for _, d_in, _ in inner)


def _bottleneck(layers: Layers) -> int:
    followed = _at(layers, (*ATTENTION_OUT, *FEED_FORWARD_OUT))
    return sum(2 * 64 * d_out + 64 + d_out for _, _, d_out in followed)


PROMISES: Mapping[str, Promise] = {
    "bottleneck": Promise(count=_bottleneck),
    "ia3": Promise(count=_ia3),
    "kasa": Promise(
        count=lambda layers: sum(8 * (d_in + d_out + 1) for _, d_in, d_out in layers), start=3.0, saved=1e-5
    ),
    "lora": Promise(count=lambda layers: sum(8 * (d_in + d_out) for _, d_in, d_out in layers), shifts=True),
    "lora_sb": Promise(count=lambda layers: 8 * 8 * len(layers), saved=1e-5),
    "sorsa": Promise(
        count=lambda layers: sum(8 * (d_in + d_out + 1) for _, d_in, d_out in layers), start=1e-5, saved=1e-5
    ),
    "svfit": Promise(count=lambda layers: 8 * len(layers), start=1e-5, saved=1e-5),
    "vera": Promise(count=lambda layers: sum(256 + d_out for _, _, d_out in layers), saved=1e-4),
}
"""By name, in alphabetical order."""
