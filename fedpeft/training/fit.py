"""Whether a strategy goes with an experiment's settings, its adapter and the number of its clients."""

from typing import Any

from fedpeft.codecs.chain import chained
from fedpeft.config import Experiment
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.base import Strategy
from fedpeft.strategies.ranks import require_zero_start
from fedpeft.training.adapted import Adapted
from fedpeft.training.bounds import require_bounded
from fedpeft.training.changes import require_changes

__all__ = ["require_fit"]


def require_fit(experiment: Experiment, strategy: Strategy[Any], adapted: Adapted, *, num_clients: int) -> None:
    """Refuse a strategy that these settings, this adapter or so few clients do not serve.

    Raises:
        UnsupportedError: says why, and what to use instead.
    """
    strategy.check(adapted.attached.slots)
    strategy.check_settings(train=experiment.train, evaluate=experiment.evaluate)
    require_bounded(experiment, adapted.attached.slots)
    changes = chained(experiment.codec_down.build()).changes_only
    if changes:
        require_changes(experiment, strategy, adapted.adapter, adapted.attached.slots)
    _require_start(experiment, strategy, adapted, num_clients, changes=changes)
    _require_scaling(experiment, strategy, adapted)
    _require_cohort(experiment, strategy, num_clients)


def _require_cohort(experiment: Experiment, strategy: Strategy[Any], num_clients: int) -> None:
    drawn, least = experiment.rounds.clients_per_round or num_clients, strategy.least_updates()
    if drawn < least:
        raise UnsupportedError(
            f"strategy {experiment.strategy.name!r} with these options needs at least {least} updates a round and "
            f"{drawn} client(s) are drawn; raise rounds.clients_per_round or the number of clients"
        )


def _require_start(
    experiment: Experiment, strategy: Strategy[Any], adapted: Adapted, num_clients: int, *, changes: bool
) -> None:
    """Refuse pairs that start at a product where a client may hold fewer ranks, and so lack part of the base."""
    slots = adapted.attached.slots
    state = strategy.init(slots, adapted.initial)
    asked = strategy.directives(slots, state, round_number=1, num_clients=num_clients)
    ranked = any(directive.rank is not None for directive in asked)
    if ranked and (experiment.feedback.down or changes):
        setting = f"codec_down = {experiment.codec_down.names[0]!r}" if changes else "feedback.down = true"
        raise UnsupportedError(
            f"{setting} and strategy {experiment.strategy.name!r}, which sends clients unequal ranks, do "
            "not go together: a slice is packed otherwise than the whole, so clients decode other bits; leave it out"
        )
    if strategy.rescales() or ranked:
        require_zero_start(slots, adapted.initial, strategy=experiment.strategy.name)


def _require_scaling(experiment: Experiment, strategy: Strategy[Any], adapted: Adapted) -> None:
    """Try what a client will do, so that an adapter without a scale is refused before the first round."""
    try:
        with adapted.adapter.scaled(adapted.attached, 2.0 if strategy.rescales() else 1.0):
            return
    except UnsupportedError as error:
        raise UnsupportedError(f"strategy {experiment.strategy.name!r} changes the scale of pairs: {error}") from error
