"""Padding masks built without looking at their values, so that many clients' copies of an encoder can be vmapped."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel

__all__ = ["open_masks"]


def open_masks(model: Any) -> None:
    """Have a BERT widen its own 2-D padding mask; other architectures are left as they are.

    Transformers asks ``mask.all()`` to skip the mask of an unpadded batch, which torch.func cannot trace. A mask that
    is already 4-D goes straight to the attention scores and adds the same numbers to them.
    """
    if isinstance(model.base_model, BertModel):
        model.base_model.register_forward_pre_hook(_widen, with_kwargs=True)


def _widen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        kwargs = {**kwargs, "attention_mask": _additive(mask, next(module.parameters()).dtype)}
    return args, kwargs


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn 1 (token) and 0 (padding), shape (batch, length), into 0 and the lowest number, (batch, 1, 1, length)."""
    wide = mask[:, None, None, :]
    return torch.zeros_like(wide, dtype=dtype).masked_fill(wide == 0, torch.finfo(dtype).min)
