"""Whether clients may be trained side by side on this very model: tried on public examples before the start.

A layer that is called otherwise than its adapter says would apply one client's values to another's rows, and nothing
would be raised. So the gradients of two clients side by side are held against those of each alone.
"""

import torch
from torch import Tensor, nn

from fedpeft.errors import UnsupportedError
from fedpeft.privacy.proof import NUDGE, TOLERANCE, refuse_mixing
from fedpeft.seeds import generator
from fedpeft.tasks.base import Batch
from fedpeft.training.loop import to_device
from fedpeft.training.stack import Stack
from fedpeft.training.workbench import Workbench

__all__ = ["unfit"]

Values = dict[nn.Parameter, Tensor]
_CLIENTS = _ROWS = 2


def unfit(bench: Workbench) -> str | None:
    """Return why clients cannot be trained side by side, in one line; None where they can.

    In eval mode, so that no dropout is drawn, and at parameters nudged off their start, each client's otherwise: where
    a factor starts at zero, its partner has no gradient.
    """
    if (declared := bench.adapted.adapter.alone()) is not None:
        return declared
    model, live = bench.adapted.attached.model, list(bench.adapted.attached.parameters().values())
    model.eval()
    try:
        refuse_mixing(model)
        return _difference(bench, live)
    except (UnsupportedError, RuntimeError, TypeError, ValueError, IndexError) as error:
        return f"side by side this model fails: {type(error).__name__}: {error}".splitlines()[0]


def _difference(bench: Workbench, live: list[nn.Parameter]) -> str | None:
    model, have = bench.adapted.attached.model, len(bench.held_out)
    rows = [[bench.held_out[(_ROWS * client + at) % have] for at in range(_ROWS)] for client in range(_CLIENTS)]
    collate = bench.adapted.task.collate
    values = [_nudged(live, client) for client in range(_CLIENTS)]
    truth = [_alone(bench, live, own, to_device(collate(each), model)) for own, each in zip(values, rows, strict=True)]
    found = _together(bench, live, values, to_device(collate([row for each in rows for row in each]), model))
    largest = max(float(gradient.abs().max()) for each in truth for gradient in each)
    pairs = [(got[client], truth[client][at]) for at, got in enumerate(found) for client in range(_CLIENTS)]
    away = max(float((got - expected).abs().max()) for got, expected in pairs)
    if largest > 0 and away <= TOLERANCE * largest:
        return None
    return f"side by side gradients are away by {away:.1e} of at most {largest:.1e}, allowed is {TOLERANCE:.0e} of it"


def _nudged(live: list[nn.Parameter], client: int) -> Values:
    draw = generator(0, "stack", client)
    return {each: each.detach() + NUDGE * torch.randn(each.shape, generator=draw).to(each) for each in live}


def _alone(bench: Workbench, live: list[nn.Parameter], values: Values, batch: Batch) -> tuple[Tensor, ...]:
    """Return the gradients of the sum of losses at these values, which are then taken out again."""
    before = [each.detach().clone() for each in live]
    with torch.no_grad():
        for each in live:
            each.copy_(values[each])
    losses = bench.adapted.task.losses(bench.adapted.attached.model, batch)
    found = torch.autograd.grad(losses.sum(), live, materialize_grads=True)
    with torch.no_grad():
        for each, value in zip(live, before, strict=True):
            each.copy_(value)
    return found


def _together(bench: Workbench, live: list[nn.Parameter], values: list[Values], batch: Batch) -> tuple[Tensor, ...]:
    """Return the same of all clients at once, each (clients, *shape)."""
    model = bench.adapted.attached.model
    leaves = [torch.stack([own[each] for own in values]).requires_grad_() for each in live]
    stack = Stack(model, live)
    stack.values, stack.groups, stack.rows = dict(zip(live, leaves, strict=True)), _CLIENTS, _CLIENTS * _ROWS
    with stack.in_place():
        losses = bench.adapted.task.losses(model, batch)
    return torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)
