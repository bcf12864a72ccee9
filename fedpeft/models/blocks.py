"""Where a transformer's body keeps its embeddings and its blocks, read off the model itself."""

from dataclasses import dataclass
from typing import final

from torch import nn
from transformers import PreTrainedModel

from fedpeft.errors import UnsupportedError

__all__ = ["Blocks", "blocks_of"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """A body that is embeddings, blocks one after the other, and what comes after the last of them."""

    path: str
    """Of the body within the model; empty where it is the model itself."""
    body: nn.Module
    embeddings: nn.Module
    """What makes, or begins to make, the states that enter the first block."""
    blocks: tuple[nn.Module, ...]
    prefixes: tuple[str, ...]
    """Of each block's path within the body, with a dot at its end."""
    after: tuple[str, ...]
    """Paths within the body of what reads the states that leave the last block."""


_LAYOUTS = (
    # BERT, RoBERTa
    ("embeddings", "encoder.layer", ("pooler",)),
    # DistilBERT
    ("embeddings", "transformer.layer", ()),
    # GPT-2
    ("wte", "h", ("ln_f",)),
    # Llama, Mistral, Qwen, SmolLM
    ("embed_tokens", "layers", ("norm",)),
    # ViT, DeiT
    ("embeddings", "layers", ("layernorm", "pooler")),
)


def blocks_of(model: nn.Module) -> Blocks:
    """Return where the model's blocks are; that they are called one after the other is for the caller to prove.

    Raises:
        UnsupportedError: the body follows no layout known here.
    """
    path, body = _body(model)
    for embeddings, blocks, after in _LAYOUTS:
        first, stack = _at(body, embeddings), _at(body, blocks)
        if first is not None and isinstance(stack, nn.ModuleList) and len(stack):
            return Blocks(
                path=path,
                body=body,
                embeddings=first,
                blocks=tuple(stack),
                prefixes=tuple(f"{blocks}.{index}." for index in range(len(stack))),
                after=after,
            )
    raise UnsupportedError(
        f"{type(body).__name__} follows no layout known here of embeddings and blocks; known are those of BERT, "
        "RoBERTa, DistilBERT, GPT-2, Llama, Mistral, Qwen and ViT"
    )


def _body(model: nn.Module) -> tuple[str, nn.Module]:
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            body: nn.Module = module.base_model
            inside = next(path for path, each in module.named_modules() if each is body)
            return ".".join(part for part in (name, inside) if part), body
    return "", model


def _at(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
