"""One client's training in one round: which slots, at which ranks and scale, with which penalties, privately or not."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn

from fedpeft import seeds
from fedpeft.adapters.base import Penalty, Step
from fedpeft.privacy.randomness import source
from fedpeft.strategies.base import Turn
from fedpeft.strategies.ranks import rank_masks
from fedpeft.tasks.base import Examples
from fedpeft.training.holding import holding
from fedpeft.training.loop import Outcome, train_locally
from fedpeft.training.private import Private, train_privately
from fedpeft.training.workbench import Workbench

__all__ = ["only", "private_of", "train_turn"]


def train_turn(bench: Workbench, turn: Turn, examples: Examples, *, client: int) -> Outcome:
    """Train what the directive names, at its ranks and scale, from what is in place; privately where that is asked.

    Raises:
        UnsupportedError: gradients of single examples are needed, and are not what they should be.
        RunError: training diverged.
    """
    experiment, adapted, asked = bench.experiment, bench.adapted, turn.directive
    names, round_number = asked.train or tuple(turn.received), turn.round_number
    with (
        only(adapted.attached.parameters(), names) as parameters,
        adapted.adapter.scaled(adapted.attached, asked.scale),
        holding(adapted.attached, asked.held),
    ):

        def penalty() -> Penalty:
            own = adapted.adapter.penalty(adapted.attached)
            extra = bench.strategy.penalty(parameters, turn)
            terms = [term for term in (own.data_free, extra) if term is not None]
            return Penalty(per_sample=own.per_sample, data_free=sum(terms[1:], start=terms[0]) if terms else None)

        def after_step(done: float) -> None:
            progress = (round_number - 1 + done) / experiment.rounds.num_rounds
            adapted.adapter.after_step(adapted.attached, Step(progress=progress, learning_rate=turn.learning_rate))

        private = private_of(bench, turn, client)
        return (train_locally if private is None else partial(train_privately, private=private))(
            adapted.attached.model,
            parameters,
            examples,
            task=adapted.task,
            train=experiment.train,
            rate=turn.learning_rate,
            seed=seeds.derive(experiment.seed, "train", round_number, client),
            precision=experiment.compute.precision,
            penalty=penalty,
            after_step=after_step,
        )


def private_of(bench: Workbench, turn: Turn, client: int) -> Private | None:
    """Return what makes this turn private on the client; its noise is of this round, client and start alone."""
    mechanism = bench.mechanism
    if mechanism is None or mechanism.privacy.unit != "example" or not bench.proven:
        return None
    start = turn.received.digest()
    return Private(
        mechanism=mechanism,
        support=bench.adapted.adapter.gradients(),
        noise=source(mechanism.privacy, bench.experiment.seed, "client", client, turn.round_number, start),
        active=rank_masks(turn.slots, rank=turn.directive.rank, held=turn.directive.held),
    )


@contextmanager
def only(parameters: Mapping[str, nn.Parameter], names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Let only the named parameters train inside the block."""
    others = [parameter for name, parameter in parameters.items() if name not in names]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield {name: parameters[name] for name in parameters if name in names}
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
