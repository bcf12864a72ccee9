"""The promises of all adapters: what each one's own test file says, or what is said here."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from fedpeft import plugins
from tests.conformance.promise import Layers, Promise

__all__ = ["PROMISES"]


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


def _lora(rank: int) -> Callable[[Layers], int]:
    return lambda layers: sum(rank * (d_in + d_out) for _, d_in, d_out in layers)


def _dora(layers: Layers) -> int:
    return sum(8 * (d_in + d_out) + d_out for _, d_in, d_out in layers)


def _s2ft(layers: Layers) -> int:
    """One of two heads of width 8 and one channel in each block: all layers that bring these back have 16 outputs."""
    heads = [layer for layer in layers if layer[0].endswith(ATTENTION_OUT)]
    others = [layer for layer in _at(layers, FEED_FORWARD_OUT) if layer not in heads]
    return sum(8 * d_out for _, _, d_out in heads) + sum(d_out for _, _, d_out in others)


def _three(layers: Layers) -> int:
    """Two factors of rank 8 and a diagonal between them."""
    return sum(8 * (d_in + d_out + 1) for _, d_in, d_out in layers)


def _after_feed_forward(layers: Layers) -> int:
    return sum(2 * 64 * d_out for name, _, d_out in _at(layers, FEED_FORWARD_OUT) if not name.endswith(ATTENTION_OUT))


STARTED: dict[str, Any] = {"start": 1e-5, "saved": 1e-4, "shifts": True}
"""LoRA on the residual of a product that cancels up to rounding."""

_SAID_HERE: Mapping[str, Promise] = {
    "bottleneck": Promise(count=_bottleneck),
    "corda": Promise(count=_lora(8), **STARTED),
    "dora": Promise(count=_dora, start=1e-5, saved=1e-5),
    "ia3": Promise(count=_ia3),
    "kasa": Promise(count=_three, start=3.0, saved=1e-5),
    "llm_adapters": Promise(count=_after_feed_forward),
    "lora": Promise(count=_lora(8), shifts=True),
    "lora_ga": Promise(count=_lora(4), options={"rank": 4, "alpha": 4.0}, **STARTED),
    "lora_sb": Promise(count=lambda layers: 8 * 8 * len(layers), saved=1e-5),
    "neuroada": Promise(count=lambda layers: sum(4 * d_out for _, _, d_out in layers)),
    "peqa": Promise(count=lambda layers: sum(d_out for _, _, d_out in layers), start=2.0),
    "pissa": Promise(count=_lora(8), **STARTED),
    "prompt_tuning": Promise(count=lambda layers: 8 * 16, start=2.0),
    "s2ft": Promise(count=_s2ft),
    "soma": Promise(count=_lora(8), **STARTED),
    "sorsa": Promise(count=_three, start=1e-5, saved=1e-5),
    "svfit": Promise(count=lambda layers: 8 * len(layers), start=1e-5, saved=1e-5),
    "vera": Promise(count=lambda layers: sum(256 + d_out for _, _, d_out in layers), saved=1e-4),
}


def _promise(name: str) -> Promise:
    """Return what is said here, else PROMISE of tests/adapters/test_NAME.py."""
    if name in _SAID_HERE:
        return _SAID_HERE[name]
    found: Promise = importlib.import_module(f"tests.adapters.test_{name}").PROMISE
    return found


PROMISES: Mapping[str, Promise] = {name: _promise(name) for name in plugins.names("adapter")}
"""By name, in alphabetical order."""
