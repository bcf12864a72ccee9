"""Slots read off the names and shapes of a peft state dict, for those who hold no model: pairs, heads and the rest."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fedpeft.adapters.base import Algebra, Pair, Slot, pairs
from fedpeft.errors import UnsupportedError

__all__ = ["slots_of"]

_FACTOR = re.compile(
    r"(?P<group>.+)\.(?:lora_(?P<role>[AB])(?:\.[^.]+)?\.weight|lora_embedding_(?P<embedding>[AB])(?:\.[^.]+)?)"
)
"""``...q_proj.lora_A.weight``, with or without the adapter's name in it; an embedding's factors have no ``.weight``."""
_OTHERS = re.compile(r"\.(lora_magnitude_vector|ia3_l|vera_lambda_[bd])\b")
"""What enters a layer by a product with something else, so that its mean is not the mean of the layers."""


def slots_of(state_dict: Mapping[str, Tensor], *, alpha: float, rslora: bool = False) -> tuple[Slot, ...]:
    """Return a slot for each tensor, in order: ``lora_A`` (r, d_in) and ``lora_B`` (d_out, r) are pairs of their layer.

    The scale of a pair is alpha / r, or alpha / sqrt(r) with ``rslora``: peft's ``lora_alpha`` and ``use_rslora``. All
    tensors but the factors of pairs and peft's scaling vectors are whole modules, which average exactly.

    Raises:
        UnsupportedError: a tensor is not float32, or a factor is no matrix, lacks its other half, or does not fit it.
    """
    slots = tuple(_slot(name, tensor, alpha=alpha, rslora=rslora) for name, tensor in state_dict.items())
    _require_whole([slot for slot in slots if slot.algebra is Algebra.BILINEAR])
    for pair in pairs(slots):
        _require_fitting(pair)
    return slots


def _slot(name: str, tensor: Tensor, *, alpha: float, rslora: bool) -> Slot:
    if tensor.dtype != torch.float32:
        raise UnsupportedError(f"tensor {name!r} is {tensor.dtype}, expected torch.float32: adapters travel in float32")
    shape = tuple(tensor.shape)
    if (found := _FACTOR.fullmatch(name)) is None:
        algebra, role = (Algebra.NONLINEAR, "scale") if _OTHERS.search(name) else (Algebra.LINEAR, "head")
        return Slot(name=name, shape=shape, algebra=algebra, group=name.rpartition(".")[0], role=role)
    if len(shape) != 2 or 0 in shape:
        raise UnsupportedError(f"factor {name!r} has shape {list(shape)}, expected a matrix: adapt linear layers only")
    role = found["role"] or found["embedding"]
    rank = shape[0 if role == "A" else 1]
    scale = alpha / (rank**0.5 if rslora else rank)
    return Slot(name=name, shape=shape, algebra=Algebra.BILINEAR, group=found["group"], role=role, scale=scale)


def _require_whole(factors: list[Slot]) -> None:
    """Refuse a factor that is alone, or one of two of the same layer and role."""
    roles: dict[str, list[str]] = {}
    for slot in factors:
        roles.setdefault(slot.group, []).append(slot.role)
    for group, found in roles.items():
        if sorted(found) != ["A", "B"]:
            raise UnsupportedError(f"layer {group!r} has the factors {found}, expected one lora_A and one lora_B")


def _require_fitting(pair: Pair) -> None:
    if pair.a.shape[0] != pair.b.shape[1]:
        shapes = f"{list(pair.b.shape)} and {list(pair.a.shape)}"
        raise UnsupportedError(f"factors {pair.b.name!r} and {pair.a.name!r} have shapes {shapes}: no product")
