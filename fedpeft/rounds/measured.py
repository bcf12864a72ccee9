"""What clients measured on examples of their own."""

from collections.abc import Sequence

from fedpeft.rounds.exchange import Exchange
from fedpeft.rounds.tally import Tally
from fedpeft.wire.message import Evaluated

__all__ = ["measured"]


def measured(asking: Exchange, cohort: Sequence[int], tally: Tally) -> dict[str, float]:
    """Return the metrics of a cohort's sums; none where nobody held an example."""
    sums: dict[str, float] = {}
    for reply in asking.evaluate(cohort):
        tally.count(reply)
        if isinstance(reply.header, Evaluated):
            for name, value in reply.header.sums.items():
                sums[name] = sums.get(name, 0.0) + value
    return asking.bench.adapted.task.metrics(sums) if sums.get("weight") else {}
