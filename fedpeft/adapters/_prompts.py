"""Trained vectors put before a text's embeddings, or between a ViT's class token and its patches, and cut off again.

All is done by hooks on the model's body (what its library calls the base model), so whatever stands outside of it
(heads, labels, pooling by the last token that is no padding) sees the positions of the real tokens alone. The hooks are
methods of the module that holds the vectors: a deep copy of the model has hooks on its own vectors.
"""

import inspect
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from fedpeft.errors import UnsupportedError

__all__ = ["NAME", "Kind", "Prompts", "body_of", "kind_of"]

NAME = "virtual_tokens"
"""Of the module that is added to the body."""
Kind = str
"""``text`` or ``image``."""
_TEXT = {"input_ids", "inputs_embeds", "attention_mask"}


def body_of(model: nn.Module) -> tuple[str, Any]:
    """Return path (empty where it is the model itself) and module of the model's body."""
    body = getattr(model, "base_model", model)
    return next(path for path, module in model.named_modules() if module is body), body


def kind_of(body: Any) -> Kind:
    """Return what the body reads.

    Raises:
        UnsupportedError: neither embedded text in one stack, nor patches behind a class token.
    """
    if isinstance(getattr(getattr(body, "embeddings", None), "cls_token", None), nn.Parameter):
        return "image"
    config = getattr(body, "config", None)
    if config is not None and not config.is_encoder_decoder and set(_parameters(body)) >= _TEXT:
        return "text"
    raise UnsupportedError(
        "virtual tokens go before the embeddings of an encoder or decoder of text, or behind a ViT's class token, and "
        f"{type(body).__name__} has neither; use adapter 'lora'"
    )


@final
class Prompts(nn.Module):
    """p vectors (p, width), float32, and the hooks that put them in."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(vectors.float())

    def install(self, body: Any) -> None:
        """Put the hooks on the body; before any other, so that what extends a mask sees it extended.

        Raises:
            UnsupportedError: the body has a module of this name, or is of no kind known here; nothing has been changed.
        """
        kind = kind_of(body)
        if hasattr(body, NAME):
            raise UnsupportedError(f"{type(body).__name__} has {NAME!r} already: virtual tokens are put in once")
        body.add_module(NAME, self.to(next(body.parameters()).device))
        if kind == "image":
            body.embeddings.register_forward_hook(self.between)
            body.register_forward_pre_hook(self.refuse_mask, with_kwargs=True)
            body.register_forward_hook(self.cut_behind_class)
        else:
            body.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True)
            body.register_forward_hook(self.cut, with_kwargs=True)

    def before(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Prepend to the embeddings, (batch, length, width) to (batch, p + length, width), and extend what goes along.

        Where a cache holds the past, the vectors are in it, and the mask and positions alone are extended.
        """
        given = {**dict(zip(_parameters(body), args, strict=False)), **kwargs}
        seen, count = _seen(given), len(self.weight)
        if seen == 0:
            given = {**given, "input_ids": None, "inputs_embeds": self._prepended(body, given)}
        if (mask := given.get("attention_mask")) is not None:
            if mask.ndim != 2:
                raise UnsupportedError(f"virtual tokens: expected a mask of (batch, length), got {tuple(mask.shape)}")
            given["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
        if (positions := given.get("position_ids")) is not None:
            given["position_ids"] = self._positions(positions, seen)
        if seen == 0 and (types := given.get("token_type_ids")) is not None:
            given["token_type_ids"] = torch.cat([types.new_zeros(len(types), count), types], dim=1)
        return (), given

    def cut(self, body: Any, args: tuple[()], kwargs: dict[str, Any], output: Any) -> Any:
        """Leave the real tokens, and have a pooler look at the first of them."""
        states = _states(output)
        if kwargs.get("inputs_embeds") is not None:
            states = states[:, len(self.weight) :]
            output["last_hidden_state"] = states
            if output.get("pooler_output") is not None:
                output["pooler_output"] = body.pooler(states)
        return output

    def between(self, embeddings: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Put the vectors behind the class token, (batch, 1 + n, width) to (batch, 1 + p + n, width)."""
        return torch.cat([output[:, :1], self(output), output[:, 1:]], dim=1)

    def cut_behind_class(self, body: Any, args: tuple[Any, ...], output: Any) -> Any:
        """Leave the class token and the patches."""
        states = _states(output)
        output["last_hidden_state"] = torch.cat([states[:, :1], states[:, 1 + len(self.weight) :]], dim=1)
        return output

    def refuse_mask(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a mask of patches, which nothing here makes."""
        if kwargs.get("attention_mask") is not None:
            raise UnsupportedError("virtual tokens: images come without an attention mask; leave it away")

    def _prepended(self, body: Any, given: dict[str, Any]) -> Tensor:
        embeds: Tensor | None = given.get("inputs_embeds")
        if embeds is None:
            embeds = body.get_input_embeddings()(given["input_ids"])
        count, length, most = len(self.weight), embeds.shape[1], getattr(body.config, "max_position_embeddings", None)
        if most is not None and count + length > most:
            raise UnsupportedError(
                f"{count} virtual tokens and {length} of the text: expected at most {most} positions in "
                f"{type(body).__name__}; lower task.max_length to {most - count} or adapter.num_tokens"
            )
        return torch.cat([self(embeds), embeds], dim=1)

    def forward(self, like: Tensor) -> Tensor:
        """Return the vectors for each row of a batch, (batch, ...) to (batch, p, width)."""
        return self.weight.to(like.dtype).expand(len(like), -1, -1)

    def _positions(self, positions: Tensor, seen: int) -> Tensor:
        """Shift by p, and before the first tokens count from 0 to p - 1."""
        count = len(self.weight)
        if seen:
            return positions + count
        first = torch.arange(count, device=positions.device, dtype=positions.dtype).expand(len(positions), -1)
        return torch.cat([first, positions + count], dim=1)


def _parameters(body: Any) -> list[str]:
    return list(inspect.signature(body.forward).parameters)


def _seen(given: dict[str, Any]) -> int:
    cache = given.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def _states(output: Any) -> Tensor:
    if not isinstance(output, ModelOutput):
        raise UnsupportedError("virtual tokens: the model returns a tuple; leave return_dict at its default")
    states: Tensor = output["last_hidden_state"]
    return states
