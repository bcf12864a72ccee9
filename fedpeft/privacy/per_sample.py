"""Gradients of each example's own loss: what example-level privacy clips, one by one.

Three ways to the same tensors. The loop over examples is the truth and slow; hooks are the quickest where every tensor
that trains lies in an ordinary layer; torch.func is right wherever it runs. None leaves a trace: parameters, their
``grad``, the mode, the state dict, hooks and the libraries' globals are what they were.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedpeft.adapters.base import GradientSupport
from fedpeft.errors import UnsupportedError
from fedpeft.privacy._hooks import hooked
from fedpeft.privacy._masks import masks_in_place

__all__ = ["Batch", "Gradients", "Losses", "Way", "by_hooks", "by_loop", "by_vmap", "num_examples", "way"]

Batch = dict[str, Tensor]
"""Name of an input -> tensor whose first side is the examples."""
Losses = Callable[[nn.Module, Batch], Tensor]
"""Model and batch to the loss of each example, shape (batch,)."""
Gradients = dict[str, Tensor]
"""Name of each parameter that trains, in the model's order -> (batch, *shape), float32."""


class Way(Protocol):
    """One of the three."""

    def __call__(self, model: nn.Module, batch: Batch, losses: Losses) -> Gradients:
        """Return the gradient of each example's loss."""


def way(support: GradientSupport) -> Way:
    """Return the way that an adapter declares.

    Raises:
        UnsupportedError: it refuses; with its reason.
    """
    if support.by == "refused":
        raise UnsupportedError(
            f"this adapter has no gradients of single examples: {support.reason}; take another adapter, or privacy of "
            "whole clients"
        )
    return by_hooks if support.by == "hooks" else by_vmap


def by_loop(model: nn.Module, batch: Batch, losses: Losses) -> Gradients:
    """Differentiate one example at a time: slow, and right by definition.

    Raises:
        UnsupportedError: the losses are not one an example.
    """
    parameters, rows = _training(model), []
    for index in range(num_examples(batch)):
        loss = _losses_of(model, {name: value[index : index + 1] for name, value in batch.items()}, losses)
        rows.append(torch.autograd.grad(loss.sum(), list(parameters.values()), materialize_grads=True))
    if not rows:
        return _none_of(parameters)
    return {name: torch.stack(column).float() for name, column in zip(parameters, zip(*rows, strict=True), strict=True)}


def by_hooks(model: nn.Module, batch: Batch, losses: Losses) -> Gradients:
    """Differentiate the batch once and take each layer's gradients apart by Opacus's rules.

    Memory: (batch, *shape) of each parameter that trains. A parameter that the losses do not use has zeros.

    Raises:
        UnsupportedError: hooks do not see a parameter's use, or give it other than one gradient an example.
    """
    parameters, count = _training(model), num_examples(batch)
    if count == 0:
        return _none_of(parameters)
    with hooked(model) as collected:
        total = _losses_of(model, batch, losses).sum()
        used = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    found = {}
    for (name, parameter), whole in zip(parameters.items(), used, strict=True):
        if whole is None:
            found[name] = parameter.new_zeros((count, *parameter.shape), dtype=torch.float32)
            continue
        _require_seen(name, parameter, collected, count)
        found[name] = collected[parameter].float()
    return found


def by_vmap(model: nn.Module, batch: Batch, losses: Losses, *, chunk_size: int | None = None) -> Gradients:
    """Differentiate all examples at once by torch.func; of reparametrised weights too.

    ``chunk_size`` examples are under way together, all by default: it bounds the memory, where a method makes a whole
    weight of each example. In training mode each example draws its own dropout.

    Raises:
        UnsupportedError: the losses are not one an example.
        RuntimeError: the model does what torch.func cannot trace, for example a branch on a value.
    """
    parameters = _training(model)
    if num_examples(batch) == 0:
        return _none_of(parameters)
    whole = _Whole(model, losses)
    values = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}

    def loss(trained: dict[str, Tensor], example: Batch) -> Tensor:
        alone = {name: value.unsqueeze(0) for name, value in example.items()}
        found: Tensor = functional_call(whole, trained, (alone,))
        return found.sum()

    with masks_in_place():
        each = vmap(grad(loss), in_dims=(None, 0), randomness="different", chunk_size=chunk_size)
        found: dict[str, Tensor] = each(values, batch)
    return {name: found[f"model.{name}"].detach().float() for name in parameters}


def num_examples(batch: Batch) -> int:
    """Return how many examples a batch holds; none is allowed, since a random batch may be empty.

    Raises:
        UnsupportedError: its tensors hold unequal numbers.
    """
    counts = {name: len(value) for name, value in batch.items()}
    if len(set(counts.values())) != 1:
        raise UnsupportedError(f"gradients of single examples: the batch's tensors hold unequal numbers: {counts}")
    return next(iter(counts.values()))


class _Whole(nn.Module):
    """Model and losses as one module, so that losses may call the model as they like."""

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.model = model
        self._losses = losses

    def forward(self, batch: Batch) -> Tensor:
        """Return (batch,) losses."""
        return _losses_of(self.model, batch, self._losses)


def _training(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise UnsupportedError(f"gradients of single examples: no parameter of {type(model).__name__} trains")
    return found


def _none_of(parameters: dict[str, nn.Parameter]) -> Gradients:
    return {name: value.new_zeros((0, *value.shape), dtype=torch.float32) for name, value in parameters.items()}


def _losses_of(model: nn.Module, batch: Batch, losses: Losses) -> Tensor:
    with torch.enable_grad():
        found = losses(model, batch)
    if found.shape != (num_examples(batch),):
        raise UnsupportedError(
            f"gradients of single examples: expected one loss for each of {num_examples(batch)} examples, got shape "
            f"{tuple(found.shape)}; do not reduce the losses over the batch"
        )
    return found


def _require_seen(name: str, parameter: nn.Parameter, collected: dict[nn.Parameter, Tensor], count: int) -> None:
    """Refuse what Opacus itself lets pass: a bare tensor's missing gradient, and one gradient for a whole batch."""
    expected, found = (count, *parameter.shape), collected.get(parameter)
    if found is None or tuple(found.shape) != expected:
        got = "none" if found is None else f"shape {tuple(found.shape)}"
        raise UnsupportedError(
            f"gradients of single examples by hooks: {name!r} is trained outside of a layer's call on the batch, "
            f"expected shape {expected}, got {got}; declare by='vmap' in the adapter's gradients()"
        )
