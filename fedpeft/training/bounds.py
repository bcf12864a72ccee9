"""Whether a bound on single replies has anything to bound."""

from collections.abc import Sequence

from fedpeft.adapters.base import Slot, pairs
from fedpeft.config import Experiment
from fedpeft.errors import UnsupportedError

__all__ = ["require_bounded"]


def require_bounded(experiment: Experiment, slots: Sequence[Slot]) -> None:
    """Refuse a bound on products where there are none.

    Raises:
        UnsupportedError: names the setting and what to use instead.
    """
    if experiment.rounds.max_product_norm is not None and not pairs(slots):
        raise UnsupportedError(
            f"rounds.max_product_norm: adapter {experiment.adapter.name!r} has no A/B pairs, so there is no product to "
            "bound; use rounds.max_update_norm"
        )
