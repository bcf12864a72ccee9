"""What goes with a [privacy] table, and what is refused since its claim would not be true."""

from typing import Any

from fedpeft.config import Experiment
from fedpeft.config.privacy import Privacy
from fedpeft.errors import ConfigError, UnsupportedError
from fedpeft.privacy.per_sample import way
from fedpeft.privacy.proof import refuse_mixing
from fedpeft.strategies.base import Strategy
from fedpeft.training.adapted import Adapted

__all__ = ["require_private"]


def require_private(
    experiment: Experiment, privacy: Privacy, strategy: Strategy[Any], adapted: Adapted, *, num_clients: int
) -> None:
    """Refuse an experiment that would tell of its data what the accountant does not count.

    Raises:
        ConfigError: a setting, with what to write instead.
        UnsupportedError: a strategy or an adapter, with the reason.
    """
    if experiment.strategy.table().get("weighting") == "examples":
        raise ConfigError(
            "strategy.weighting = 'examples': with [privacy] a client does not tell how many it holds; write 'uniform'"
        )
    if experiment.evaluate.on_clients:
        raise ConfigError("evaluate.on_clients: with [privacy] nothing measured on private data may be sent; unset it")
    if privacy.unit == "example":
        way(adapted.adapter.gradients())
        refuse_mixing(adapted.attached.model)
        _require_plain_compute(experiment)
    else:
        if privacy.placement == "distributed":
            _require_exact_sum(experiment)
        _require_plain_sum(experiment.strategy.name, strategy, adapted, num_clients)


def _require_plain_compute(experiment: Experiment) -> None:
    """Require that each layer is called once, as what is proved of single examples is, and noise where it is drawn."""
    if experiment.compute.gradient_checkpointing:
        raise ConfigError(
            "compute.gradient_checkpointing: with privacy.unit = 'example' the gradients of single examples are proved "
            "for blocks that are computed once; leave it out, and lower train.batch_size if memory is short"
        )
    if experiment.compute.device != "cpu":
        raise ConfigError(
            f"compute.device = {experiment.compute.device!r}: with privacy.unit = 'example' the noise of each step is "
            "drawn on the CPU; write 'cpu', or take privacy.unit = 'client'"
        )


def _require_exact_sum(experiment: Experiment) -> None:
    """Require that what clients add up to is what they sent: rounding each one's share apart is not after the noise."""
    if experiment.codec.names != ("none",) or experiment.feedback.up:
        raise ConfigError(
            f"codec = {', '.join(experiment.codec.names)}: with privacy.placement = 'distributed' only the sum has "
            "noise enough, and a codec (or error feedback) works on each update apart; leave both out"
        )


def _require_plain_sum(name: str, strategy: Strategy[Any], adapted: Adapted, num_clients: int) -> None:
    """Require that the server uses nothing of the clients but the sum that carries the noise."""
    slots = adapted.attached.slots
    beside = strategy.beside(slots)
    if not strategy.sums() or beside.up or beside.down:
        raise UnsupportedError(
            f"strategy {name!r} uses more of the updates than their plain sum (each one, their products, or what comes "
            "beside them), which is another query with noise of its own; use one of fedavg, ffa_lora, dylora, rolora, "
            "fedadam or their kin, or privacy.unit = 'example', under which all a server does is free"
        )
    state = strategy.init(slots, adapted.initial)
    for round_number in (1, 2):
        asked = strategy.directives(slots, state, round_number=round_number, num_clients=num_clients)
        first = next(asked)
        if any(directive != first for directive in asked):
            raise UnsupportedError(
                f"strategy {name!r} asks clients for different ranks: fewer of them stand behind some entries, and one "
                "could move these by more than the noise hides; give all the same"
            )
