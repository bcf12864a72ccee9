"""Canaries sent through the code that a private run uses, and what is released of them.

A canary is the worst one example, or one client, can do: its gradient, or update, is far above the clip, along a
direction that no other has. What the release has along that direction is all there is to know of it, so an attacker
that reads it is the strongest there is.

Of unit example the canaries are a small model's examples, and train by ``train_privately``: drawn, cut, hidden as in a
run. Of unit client they are updates of the experiment's own adapter, and go through the codec and the guard of a server
(or, of distributed noise, through the client's half first).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft import seeds
from fedpeft.adapters.base import GradientSupport
from fedpeft.config import Train
from fedpeft.errors import ConfigError
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.randomness import source
from fedpeft.rounds.guard import Guard
from fedpeft.rounds.tally import Tally
from fedpeft.strategies.base import ClientUpdate, Directive, State
from fedpeft.strategies.ranks import rank_axes, sliced
from fedpeft.tasks.base import Task
from fedpeft.tensors import Tensors
from fedpeft.training.distributed import hidden
from fedpeft.training.private import Private, train_privately
from fedpeft.training.workbench import Workbench

__all__ = ["Mask", "of_clients", "of_examples"]

Mask = np.ndarray[Any, np.dtype[np.bool_]]
"""(canaries,), whether each takes part."""
_FAR = 1e6
"""A canary's length, far above any clip."""


def of_examples(mechanism: Mechanism, mask: Mask, *, rounds: int, seed: int) -> Tensor:
    """Return (canaries,) scores of a client that trains on the canaries of the mask for so many rounds."""
    model, task = _Lines(len(mask)), _Canaries(_FAR)
    examples = [{"line": torch.tensor(line)} for line in np.flatnonzero(mask)]
    train = Train(optimizer="sgd", local_steps=mechanism.steps, batch_size=max(1, len(examples)), learning_rate=1.0)
    for number in range(rounds):
        private = Private(
            mechanism=mechanism,
            support=GradientSupport(by="vmap", reason="a bare parameter"),
            noise=source(mechanism.privacy, seed, "canary", number),
            active={},
        )
        train_privately(
            model,
            dict(model.named_parameters()),
            examples,
            task=cast(Task, task),
            train=train,
            rate=1.0,
            seed=seeds.derive(seed, "canary", number),
            private=private,
        )
    return -model.height.detach()


@final
class _Lines(nn.Module):
    """One number a canary."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.zeros(count))

    def forward(self, line: Tensor) -> Tensor:
        """Return the number of each line."""
        return self.height[line]


@final
@dataclass(frozen=True)
class _Canaries:
    """The two words of a task that training says; a loss whose gradient is ``length`` along the canary's own line."""

    length: float

    def collate(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"line": torch.stack([row["line"] for row in rows])}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.length * model(batch["line"])
        return found


def of_clients(bench: Workbench, mechanism: Mechanism, mask: Mask, *, rounds: int, seed: int) -> Tensor:
    """Return (canaries,) scores of a federation whose clients are the canaries of the mask.

    Each round draws them by the mechanism's rate, cuts, adds up and hides; a canary's score is the sum over the rounds
    of what was released at its place, in units of the round's clip.
    """
    if mechanism.shares is not None:  # the worst case: no more take part than the shares are made for
        mechanism = replace(mechanism, shares=max(1, int(mask.sum())))
    bench = replace(bench, mechanism=mechanism)
    keeper = Guard(bench=bench, mechanism=mechanism, ledger=Ledger(Path()))
    slots, strategy = bench.adapted.attached.slots, bench.strategy
    state = strategy.init(slots, bench.adapted.initial)
    draw = np.random.default_rng(seeds.derive(seed, "canaries"))
    places, scores = _places(bench, state, len(mask), draw), torch.zeros(len(mask), dtype=torch.float64)
    for number in range(1, rounds + 1):
        asked, tally = strategy.directive(slots, state, round_number=number, client=0), Tally(total=strategy.start())
        for canary in np.flatnonzero(mask & (draw.random(len(mask)) < mechanism.sample_rate)):
            update = _update(bench, asked, places[canary], int(canary), number)
            tally.num_within += keeper.within(update, state)
            tally.num_updates += 1
            limited = strategy.prepare(slots, state, keeper.limited(update, state))
            tally.total = strategy.accumulate(tally.total, limited)
        released = keeper.noised(tally.total, state, number).tensors
        scores += torch.tensor([_at(released, place) for place in places]).double() / keeper.clip(state)
        state = keeper.renewed(state, state, tally, number)
    return scores


Place = tuple[str, tuple[int, ...]]
"""A slot, and an entry of it."""


def _places(bench: Workbench, state: State, count: int, draw: np.random.Generator) -> list[Place]:
    """Draw an entry for each canary, no two the same; where ranks are drawn, of the first, which every round trains.

    Raises:
        ConfigError: there are fewer entries than canaries.
    """
    slots, strategy = bench.adapted.attached.slots, bench.strategy
    asked = strategy.directive(slots, state, round_number=1, client=0)
    axes = rank_axes(slots) if asked.rank is not None else {}
    shapes = {spec.name: list(spec.shape) for spec in asked.select(slots, strategy.uplink(slots))}
    for name in axes.keys() & shapes.keys():
        shapes[name][axes[name]] = 1
    every = [(name, entry) for name, shape in shapes.items() for entry in np.ndindex(*shape)]
    if len(every) < count:
        raise ConfigError(f"canaries = {count}: expected at most {len(every)}, the entries that each round trains")
    return [every[at] for at in draw.choice(len(every), size=count, replace=False)]


def _update(bench: Workbench, asked: Directive, place: Place, client: int, round_number: int) -> ClientUpdate:
    """Return what a canary's client sends: its line alone, far above the clip."""
    slots, strategy = bench.adapted.attached.slots, bench.strategy
    zero, (name, entry) = bench.adapted.initial.zeros(), place
    line = torch.zeros_like(zero[name])
    line[entry] = _FAR
    names = [spec.name for spec in asked.select(slots, strategy.uplink(slots))]
    delta = sliced(zero.replace(Tensors({name: line})).select(names), slots, rank=asked.rank, held=asked.held)
    sent = hidden(bench, delta, client=client, round_number=round_number)
    came = bench.codec.received(sent, bench.common("up", round_number=round_number, client=client))
    return ClientUpdate(client=client, delta=came, num_examples=1, directive=asked)


def _at(released: Tensors, place: Place) -> float:
    name, entry = place
    return float(released[name][entry]) if name in released else 0.0
