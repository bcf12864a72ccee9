"""Clients with example-level privacy side by side: each example's gradient apart, each client's own sum and noise.

What ``private`` does for one client: draw, cut each example's gradient, add up, add noise, divide. Here each row of the
batch is a group of its own with a copy of its client's values, so that one backward pass gives the gradients of all
clients' single examples, (clients, b, *shape). Who is drawn and the noise come from each client's own generator, in the
order in which it would draw alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedpeft.privacy.randomness import gaussian
from fedpeft.tasks.base import Row
from fedpeft.tensors import Spec
from fedpeft.timing import phase, timed
from fedpeft.training.group import Group, Held, Trained, rank_rows
from fedpeft.training.loop import Outcome
from fedpeft.training.optimizers import make_optimizer
from fedpeft.training.private import Private, draw

__all__ = ["fit_privately"]

Rows = dict[str, Tensor]
_SMALL = 1e-6
"""Opacus adds it to a norm before it divides by it."""


def fit_privately(group: Group, private: Sequence[Private]) -> list[Trained]:
    """Train all members, in the order of the group; ``private`` has one entry for each."""
    train, total = group.bench.experiment.train, private[0].mechanism.steps
    optimizer = make_optimizer(train, group.values.values(), group.members[0].turn.learning_rate)
    active, held, number = rank_rows(group.members, cut=True), Held(group), len(private)
    for step in range(total):
        sums = _sums(group, private, active)
        for name, noise in _noise(group, private).items():
            gradient = (sums[name] + noise) / private[0].mechanism.divisor
            group.values[name].grad = gradient * active[name] if name in active else gradient
        group.penalise(number)
        held.silence()
        with phase("optimizer"):
            optimizer.step()
        group.after_step([(step + 1) / total] * number)
        held.restore()
    outcome = Outcome(num_steps=total, num_seen=0, train_loss=None)
    return [Trained(adapter=group.read(place), outcome=outcome) for place in range(number)]


def _sums(group: Group, private: Sequence[Private], active: Rows) -> Rows:
    """Return each member's sum of cut gradients, (members, *shape), of the examples it draws."""
    size = group.bench.experiment.train.batch_size
    drawn = [list(draw(each.examples, size, own)) for each, own in zip(group.members, private, strict=True)]
    sums = {name: torch.zeros_like(value) for name, value in group.values.items()}
    for part in range(max(map(len, drawn))):
        rows = [chunks[part] if part < len(chunks) else [] for chunks in drawn]
        if any(rows):
            for name, value in _cut(group, rows, private[0], active).items():
                sums[name] += value
    return sums


def _cut(group: Group, drawn: Sequence[Sequence[Row]], private: Private, active: Rows) -> Rows:
    """Return the sums over one part of what is drawn; a gradient that is not finite counts as none."""
    gradients, present = _gradients(group, drawn)
    with phase("privacy"):
        sound = torch.stack([value.flatten(2).isfinite().all(2) for value in gradients.values()]).all(0) & present
        kept = {name: torch.where(_like(sound, value), value, 0.0) for name, value in gradients.items()}
        kept = {name: value * active[name][:, None] if name in active else value for name, value in kept.items()}
        clip = private.mechanism.privacy.clip
        if private.mechanism.privacy.clipping == "per_layer":
            kept = {name: _limited(value, clip / len(kept) ** 0.5) for name, value in kept.items()}
        lengths = torch.stack([value.flatten(2).norm(dim=2) for value in kept.values()], dim=-1).norm(dim=-1)
        factors = (clip / (lengths + _SMALL)).clamp(max=1.0)
        return {name: torch.einsum("kb,kb...->k...", factors, value) for name, value in kept.items()}


@timed("forward-backward")
def _gradients(group: Group, drawn: Sequence[Sequence[Row]]) -> tuple[Rows, Tensor]:
    """Return slot -> (members, b, *shape), and which of these are of an example."""
    batch, present = group.batch(drawn)
    each = present.shape[1]
    leaves = {name: value.detach().repeat_interleave(each, 0).requires_grad_() for name, value in group.values.items()}
    group.put(leaves, rows=1)
    losses = group.losses(batch)
    found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return {
        name: value.reshape(*present.shape, *value.shape[1:]) for name, value in zip(leaves, found, strict=True)
    }, present


@timed("privacy")
def _noise(group: Group, private: Sequence[Private]) -> Rows:
    """Return each member's own noise, (members, *shape)."""
    like = [(name, value) for name, value in group.values.items()]
    specs = [Spec(name=name, shape=tuple(value.shape[1:]), dtype="float32") for name, value in like]
    own = [_drawn(specs, each) for each in private]
    return {name: torch.stack([noise[name] for noise in own]).to(value.device) for name, value in like}


def _drawn(specs: Sequence[Spec], private: Private) -> dict[str, Tensor]:
    std = private.mechanism.noise_multiplier * private.mechanism.privacy.clip
    return dict(gaussian(specs, std, private.noise))


def _limited(value: Tensor, norm: float) -> Tensor:
    lengths = value.flatten(2).norm(dim=2)
    return value * _like(norm / lengths.clamp(min=norm), value)


def _like(value: Tensor, other: Tensor) -> Tensor:
    return value.reshape(*value.shape, *[1] * (other.dim() - value.dim()))
