"""What clients that train side by side share: one model, and tensors (C, *shape) of which row k is client k's own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor, nn

from fedpeft import seeds
from fedpeft.adapters.base import Adapter, Step
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.base import Strategy, Turn
from fedpeft.strategies.ranks import rank_masks
from fedpeft.tasks.base import Batch, Examples, Row
from fedpeft.tensors import Tensors
from fedpeft.timing import timed
from fedpeft.training.loop import Outcome, autocast, counted, to_device
from fedpeft.training.stack import Stack
from fedpeft.training.workbench import Workbench

__all__ = ["Group", "Held", "Member", "Trained", "rank_rows"]


@final
@dataclass(frozen=True, kw_only=True)
class Member:
    """One client of a group, and what its training starts from."""

    client: int
    turn: Turn
    start: Tensors
    """All exchanged slots."""
    examples: Examples


@final
@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one client's training came to."""

    adapter: Tensors
    """All exchanged slots."""
    outcome: Outcome


@final
class Group:
    """Members of one round that train the same slots, in the order of their rows."""

    def __init__(self, bench: Workbench, members: Sequence[Member], live: Mapping[str, nn.Parameter]) -> None:
        """``live`` are the parameters that train, by slot; what members hold alike of the others stays in place.

        Raises:
            UnsupportedError: the model cannot take stacked parameters.
        """
        self.bench, self.members, self.live = bench, tuple(members), dict(live)
        self._model = bench.adapted.attached.model
        device = next(self._model.parameters()).device
        rows = {name: torch.stack([member.start[name] for member in members]).to(device) for name in members[0].start}
        self.values = {name: nn.Parameter(rows[name]) for name in live}
        """Of what trains: slot -> (C, *shape)."""
        bound = {each.slot.name: each.parameter for each in bench.adapted.attached.bound if each.slot.travels}
        self._fixed = {bound[name]: value for name, value in rows.items() if name not in live and _differ(value)}
        self._stack = Stack(self._model, [*live.values(), *self._fixed])

    @contextmanager
    def training(self, seed: int) -> Iterator[Self]:
        """Have the model train the members' values inside the block, with dropout of this seed."""
        self._model.train()
        try:
            with self._stack.in_place(), seeds.isolated(seed, "dropout"):
                yield self
        finally:
            self._model.eval()

    def put(self, values: Mapping[str, Tensor], *, rows: int) -> None:
        """Have the next pass use these values (G, *shape) for groups of so many rows, members in order."""
        groups = len(next(iter(values.values())))
        fixed = {parameter: _spread(value, groups) for parameter, value in self._fixed.items()}
        self._stack.values = {**{self.live[name]: value for name, value in values.items()}, **fixed}
        self._stack.groups, self._stack.rows = groups, groups * rows

    @timed("data")
    def batch(self, drawn: Sequence[Sequence[Row]]) -> tuple[Batch, Tensor]:
        """Return one batch of all members' rows, each filled up to the longest, and which are there: (members, b).

        A row that fills up is the member's own first, or, where it has none, another's; both are left out of all sums.
        """
        longest = max(len(rows) for rows in drawn)
        spare = next(rows[0] for rows in drawn if rows)
        filled = [[*rows, *[rows[0] if rows else spare] * (longest - len(rows))] for rows in drawn]
        present = torch.tensor([[place < len(rows) for place in range(longest)] for rows in drawn])
        batch = self.bench.adapted.task.collate([row for rows in filled for row in rows])
        return counted(to_device(batch, self._model)), present.to(next(self._model.parameters()).device)

    def losses(self, batch: Batch) -> Tensor:
        """Return one loss a row."""
        with autocast(self._model, self.bench.experiment.compute.precision):
            return self.bench.adapted.task.losses(self._model, batch)

    @timed("forward-backward")
    def penalise(self, number: int) -> None:
        """Add the gradients of the penalties of the first members, which look at their parameters alone."""
        adapter, strategy, attached = self.bench.adapted.adapter, self.bench.strategy, self.bench.adapted.attached
        if type(adapter).penalty is not Adapter.penalty:
            for place in range(number):
                self._write(place)
                own = adapter.penalty(attached)
                if own.per_sample is not None:
                    raise UnsupportedError("the adapter's penalty looks at data, and clients are trained side by side")
                if own.data_free is not None:
                    self._add(place, own.data_free)
        if type(strategy).penalty is not Strategy.penalty:
            terms = [strategy.penalty(self._of(place), self.members[place].turn) for place in range(number)]
            if found := [term for term in terms if term is not None]:
                torch.stack(found).sum().backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def after_step(self, done: Sequence[float]) -> None:
        """Have the adapter change the first members' parameters, each with so much of its own training done."""
        adapter, attached, rounds = (
            self.bench.adapted.adapter,
            self.bench.adapted.attached,
            self.bench.experiment.rounds,
        )
        if type(adapter).after_step is Adapter.after_step:
            return
        for place, share in enumerate(done):
            turn = self.members[place].turn
            self._write(place)
            progress = (turn.round_number - 1 + share) / rounds.num_rounds
            adapter.after_step(attached, Step(progress=progress, learning_rate=turn.learning_rate))
            for name, parameter in self.live.items():
                self.values[name][place].copy_(parameter)

    def read(self, place: int) -> Tensors:
        """Return a copy of one member's exchanged slots, float32 on the CPU."""
        own = {name: value[place].detach().to("cpu", copy=True) for name, value in self.values.items()}
        return self.members[place].start.replace(own)

    @torch.no_grad()
    def _write(self, place: int) -> None:
        for name, parameter in self.live.items():
            parameter.copy_(self.values[name][place])

    def _of(self, place: int) -> dict[str, Tensor]:
        return {name: value[place] for name, value in self.values.items()}

    def _add(self, place: int, term: Tensor) -> None:
        found = torch.autograd.grad(term, list(self.live.values()), allow_unused=True)
        for value, gradient in zip(self.values.values(), found, strict=True):
            if gradient is not None and value.grad is not None:
                value.grad[place] += gradient


@final
class Held:
    """Ranks of members that are held still: no gradient, and what weight decay moves is put back."""

    def __init__(self, group: Group) -> None:
        self._values = group.values
        self._masks = {name: mask for name, mask in rank_rows(group.members, cut=False).items() if name in group.values}
        self._start = {name: group.values[name].detach().clone() for name in self._masks}

    def silence(self) -> None:
        """Leave the gradient of what trains."""
        for name, mask in self._masks.items():
            if (gradient := self._values[name].grad) is not None:
                self._values[name].grad = torch.where(mask, gradient, 0.0)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what is held."""
        for name, mask in self._masks.items():
            self._values[name].copy_(torch.where(mask, self._values[name], self._start[name]))


def rank_rows(members: Sequence[Member], *, cut: bool) -> dict[str, Tensor]:
    """Return slot -> which entries of each member train, (C, *shape); none where all do.

    With ``cut`` ranks beyond those that a member has are left out too; without, they have zero gradients by themselves.
    """
    asked = [(member.turn.slots, member.turn.directive) for member in members]
    found = [rank_masks(slots, rank=each.rank if cut else None, held=each.held) for slots, each in asked]
    shapes = {slot.name: slot.shape for slot in members[0].turn.slots}
    names = dict.fromkeys(name for masks in found for name in masks)
    whole = torch.ones((), dtype=torch.bool)
    return {name: torch.stack([masks.get(name, whole).expand(shapes[name]) for masks in found]) for name in names}


def _differ(rows: Tensor) -> bool:
    return bool((rows != rows[:1]).any())


def _spread(rows: Tensor, groups: int) -> Tensor:
    """Return the rows of the first members, or of each as many as make up so many groups."""
    return rows[:groups] if groups <= len(rows) else rows.repeat_interleave(groups // len(rows), 0)
