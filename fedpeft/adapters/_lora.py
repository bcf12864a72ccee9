"""LoRA as peft hosts it, with the ranks and scales of a plan: what the methods of its family share.

The plan's values are rank, alpha, dropout, rslora, ranks (path -> rank) and transposed.
"""

import re
from collections.abc import Callable
from typing import Any

from peft import LoraConfig, LoraModel
from torch import nn

from fedpeft.adapters import _peft
from fedpeft.adapters.base import Algebra, Attached, Bound, Slot
from fedpeft.adapters.plan import Plan

__all__ = ["config", "host"]


def host(model: nn.Module, plan: Plan, fill: Callable[[str, Any], None]) -> Attached:
    """Inject, let ``fill(path, layer)`` set the factors A (r, d_in) and B (d_out, r) of each layer, and bind them."""
    tuner = _peft.inject(LoraModel, model, config(plan), plan.values["ranks"])
    layers = _peft.layers(model)
    for path, layer in layers.items():
        fill(path, layer)
    bound = tuple(bind for path, layer in layers.items() for bind in _bind(path, layer))
    return Attached(model=model, bound=bound, handle=tuner)


def config(plan: Plan) -> Any:
    """Return peft's configuration of the plan."""
    values = plan.values
    return LoraConfig(
        r=values["rank"],
        lora_alpha=values["alpha"],
        lora_dropout=values["dropout"],
        use_rslora=values["rslora"],
        target_modules=list(values["ranks"]),
        rank_pattern={re.escape(path): rank for path, rank in values["ranks"].items() if rank != values["rank"]},
        fan_in_fan_out=values["transposed"],
    )


def _bind(path: str, layer: Any) -> tuple[Bound, Bound]:
    """Return the pair of one layer: A (r, d_in) and B (d_out, r)."""
    scale = layer.scaling[_peft.NAME]
    a, b = layer.lora_A[_peft.NAME].weight, layer.lora_B[_peft.NAME].weight
    return _factor(path, "A", a, scale), _factor(path, "B", b, scale)


def _factor(path: str, role: str, parameter: nn.Parameter, scale: float) -> Bound:
    name, shape = f"{path}.lora_{role}", tuple(parameter.shape)
    return Bound(Slot(name=name, shape=shape, algebra=Algebra.BILINEAR, group=path, role=role, scale=scale), parameter)
