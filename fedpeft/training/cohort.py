"""Several clients of a round trained side by side: one pass of the frozen model for all their rows.

All go in step: in step t each client that still trains gives its own t-th batch, and what each computes is what it
would alone, up to rounding: the mean loss of its own rows, its own clipping, moments, ranks and penalties. Those with
more steps come first, so that those that still train are the first ones; what becomes of the rows of the others is not
looked at. Dropout alone is drawn from the group's seed and not from the client's, since one mask is of all rows: the
same distribution, other draws.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedpeft import seeds
from fedpeft.data.batches import batch_indices, num_batches
from fedpeft.errors import RunError
from fedpeft.tasks.base import Row
from fedpeft.timing import phase, timed
from fedpeft.training.cohort_private import fit_privately
from fedpeft.training.group import Group, Held, Member, Trained
from fedpeft.training.loop import Outcome, sound
from fedpeft.training.optimizers import make_optimizer
from fedpeft.training.turn import only, private_of
from fedpeft.training.workbench import Workbench

__all__ = ["train_cohort"]


def train_cohort(bench: Workbench, members: Sequence[Member]) -> list[Trained | RunError]:
    """Return what became of each member, or why its own training diverged.

    All are of one round, train the same slots at the same scale, and have the same residuals, which are in place.

    Raises:
        UnsupportedError: the adapter cannot be stacked on this model.
    """
    attached, turn = bench.adapted.attached, members[0].turn
    ordered = sorted(members, key=lambda member: -_num_steps(bench, member))
    private = [private_of(bench, member.turn, member.client) for member in ordered]
    clients = (member.client for member in members)
    seed = seeds.derive(bench.experiment.seed, "cohort", turn.round_number, *clients)
    attached.write(members[0].start)
    with (
        only(attached.parameters(), turn.directive.train or tuple(turn.received)) as live,
        bench.adapted.adapter.scaled(attached, turn.directive.scale),
        Group(bench, ordered, live).training(seed) as group,
    ):
        found = fit_privately(group, [each for each in private if each]) if all(private) else _fit(group)
    ended = {member.client: _sound(each, live) for member, each in zip(ordered, found, strict=True)}
    return [ended[member.client] for member in members]


def _num_steps(bench: Workbench, member: Member) -> int:
    train = bench.experiment.train
    length = {"epochs": None if train.local_steps else train.local_epochs, "steps": train.local_steps}
    return num_batches(len(member.examples), train.batch_size, **length)


def _sound(trained: Trained, names: Mapping[str, object]) -> Trained | RunError:
    try:
        sound(trained.outcome, {name: trained.adapter[name] for name in names})
    except RunError as error:
        return error
    return trained


def _fit(group: Group) -> list[Trained]:
    """Train all members, in the order of the group."""
    bench = group.bench
    optimizer = make_optimizer(bench.experiment.train, group.values.values(), group.members[0].turn.learning_rate)
    totals, batches = [_num_steps(bench, member) for member in group.members], _batches(group)
    held, losses, seen = Held(group), torch.zeros(len(totals), dtype=torch.float64), [0] * len(totals)
    found: dict[int, Trained] = {}
    for step in range(totals[0]):
        number = sum(total > step for total in totals)
        drawn = [next(each) for each in batches[:number]]
        losses[:number] += _differentiate(group, drawn, held)
        group.penalise(number)
        held.silence()
        with phase("optimizer"):
            optimizer.step()
        group.after_step([(step + 1) / total for total in totals[:number]])
        held.restore()
        for place, rows in enumerate(drawn):
            seen[place] += len(rows)
            if totals[place] == step + 1:
                loss = float(losses[place]) / seen[place]
                outcome = Outcome(num_steps=totals[place], num_seen=seen[place], train_loss=loss)
                found[place] = Trained(adapter=group.read(place), outcome=outcome)
    return [found[place] for place in range(len(totals))]


def _batches(group: Group) -> list[Iterator[list[Row]]]:
    """Return each member's batches, in the order in which it would go through them alone."""
    settings = group.bench.experiment
    train = settings.train
    length = {"epochs": None if train.local_steps else train.local_epochs, "steps": train.local_steps}

    def rows(member: Member) -> Iterator[list[Row]]:
        seed = seeds.derive(settings.seed, "train", member.turn.round_number, member.client)
        for indices in batch_indices(len(member.examples), train.batch_size, seed=seed, **length):
            yield [member.examples[index] for index in indices]

    return [rows(member) for member in group.members]


def _differentiate(group: Group, drawn: Sequence[Sequence[Row]], held: Held) -> Tensor:
    """Fill gradients of each member's mean loss, clipped, and return the members' sums of losses, (members,)."""
    batch, present = group.batch(drawn)
    for value in group.values.values():
        value.grad = None
    with phase("forward-backward"):
        group.put({name: value[: len(drawn)] for name, value in group.values.items()}, rows=present.shape[1])
        losses = group.losses(batch).reshape(present.shape)
        sums = torch.where(present, losses, 0.0).sum(1)
        (sums / present.sum(1)).sum().backward()  # type: ignore[no-untyped-call]
    held.silence()
    _clip([value.grad for value in group.values.values()], group.bench.experiment.train.max_grad_norm)
    return sums.detach().to("cpu", torch.float64)


@timed("optimizer")
def _clip(gradients: Sequence[Tensor | None], norm: float | None) -> None:
    """Cut each member's whole gradient to this L2 norm, as torch's ``clip_grad_norm_`` does."""
    have = [gradient for gradient in gradients if gradient is not None]
    if norm is None:
        return
    lengths = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in have]).norm(dim=0)
    factors = (norm / (lengths + 1e-6)).clamp(max=1.0)
    for gradient in have:
        gradient.mul_(factors.reshape(-1, *[1] * (gradient.dim() - 1)))
