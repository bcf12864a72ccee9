"""A frozen base in 8 or 4 bits a weight: the linear layers of a model's body as bitsandbytes has them.

int8: Dettmers, Lewis, Belkada, Zettlemoyer: LLM.int8() (2022), arXiv 2208.07339, a scale a row, without outliers taken
apart, since these are found over a whole batch and would mix its examples. nf4: Dettmers, Pagnoni, Holtzman,
Zettlemoyer: QLoRA (2023), arXiv 2305.14314, blocks of 64 with scales that are quantised too.
"""

import importlib.util
import logging
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpeft.errors import UnsupportedError

__all__ = ["quantize"]

Format = Literal["int8", "nf4"]
_LIBRARY = "bitsandbytes"
_FLAGS: dict[Format, str] = {"int8": "is_loaded_in_8bit", "nf4": "is_loaded_in_4bit"}
"""What peft looks for on a model, so that it puts its factors by the quantised layers."""


def quantize(model: nn.Module, form: Format, *, device: str, computed: torch.dtype) -> None:
    """Turn each linear layer of the body into a frozen quantised one, in place, on the device; the head stays.

    Raises:
        UnsupportedError: bitsandbytes is not installed, or the model has other layers than ``nn.Linear``.
    """
    if importlib.util.find_spec(_LIBRARY) is None:
        raise UnsupportedError(
            f"compute.quantization = {form!r} needs {_LIBRARY}, which is not installed; pip install "
            "'fedpeft[quantization]', or write 'none'"
        )
    body = model.base_model if isinstance(model, PreTrainedModel) else model
    if any(isinstance(module, Conv1D) for module in body.modules()):
        raise UnsupportedError(
            f"compute.quantization = {form!r}: {type(model).__name__} has Conv1D layers (GPT-2), whose weights lie the "
            "other way round; take a model of nn.Linear layers, or write 'none'"
        )
    for path, layer in [(path, each) for path, each in body.named_modules() if type(each) is nn.Linear]:
        parent, _, name = path.rpartition(".")
        made = _int8(layer) if form == "int8" else _nf4(layer, computed)
        body.get_submodule(parent).add_module(name, made.to(device).eval())
    setattr(model, _FLAGS[form], True)


def _int8(layer: nn.Linear) -> Any:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    # At each call it would say that products take float16, as they always do.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    made = Linear8bitLt(
        layer.in_features, layer.out_features, bias=layer.bias is not None, has_fp16_weights=False, threshold=0.0
    )
    made.weight = Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    return _with_bias(made, layer)


def _nf4(layer: nn.Linear, computed: torch.dtype) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    made = Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=computed, quant_type="nf4"
    )
    made.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    # On some processors it would lay weights out anew when it first predicts, and so round otherwise from then on.
    made.support_avx512bf16_for_cpu = False
    return _with_bias(made, layer)


def _with_bias(made: Any, layer: nn.Linear) -> Any:
    made.bias = None if layer.bias is None else nn.Parameter(layer.bias.data, requires_grad=False)
    return made
