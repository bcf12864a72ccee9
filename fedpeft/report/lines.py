"""What is said of a run in words: at its start, of a round, of a partition, at its end."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedpeft.config import Experiment
from fedpeft.report.record import RoundRecord
from fedpeft.report.text import as_bytes, as_number, as_seconds
from fedpeft.report.watch import Share, clients_of

__all__ = ["closing_lines", "failure_lines", "headline", "opening", "partition_rows", "round_words"]

_MAX_ROWS = 20
_MAX_LABELS = 6


def opening(experiment: Experiment, num_clients: int, num_parameters: int, first_round: int) -> str:
    """Return what is about to run."""
    rounds = experiment.rounds.num_rounds
    cohort = min(experiment.rounds.clients_per_round or num_clients, num_clients)
    resumed = f", resumed at round {first_round}" if first_round > 1 else ""
    return (
        f"{experiment.name}: {experiment.adapter.name} with {num_parameters:,} parameters, {experiment.strategy.name}, "
        f"{rounds} rounds of {cohort} of {num_clients} clients{resumed}"
    )


def headline(metrics: Iterable[str]) -> str | None:
    """Return the metric to show first: the accuracy if there is one, else the first that is no loss."""
    names = sorted(metrics, key=lambda name: (name != "accuracy", name == "loss", name))
    return names[0] if names else None


def round_words(record: RoundRecord) -> list[str]:
    """Return what one line says of a round: metrics, clients, bytes, time."""
    metrics = [f"{name} {as_number(value)}" for name, value in sorted(record.metrics.items(), reverse=True)]
    train = [] if record.train_loss is None else [f"train loss {as_number(record.train_loss)}"]
    replied = len(record.clients) - len(record.failures)
    clients = [f"clients {replied}/{len(record.clients)}"] if record.clients else []
    moved = [f"up {as_bytes(record.bytes_up)}", f"down {as_bytes(record.bytes_down)}"] if record.clients else []
    spent = [] if record.epsilon is None else [f"epsilon {as_number(record.epsilon)}"]
    return [*train, *metrics, *clients, *spent, *moved, as_seconds(record.total_seconds)]


def partition_rows(shares: Sequence[Share]) -> list[tuple[str, str, str]]:
    """Return client, examples and labels of each client as text, cut to about twenty rows."""
    many = len(shares) > _MAX_ROWS
    shown = shares[: _MAX_ROWS - 1] if many else shares
    rows = [(str(share["client"]), _count([share]), _labels(share.get("labels", {}))) for share in shown]
    rest = shares[len(shown) :]
    return [*rows, (f"{clients_of(rest)} more", _count(rest), "")] if rest else rows


def _count(shares: Sequence[Share]) -> str:
    """Say how many examples clients hold; where that is their own affair, so."""
    counts = [share["num_examples"] for share in shares]
    return "its own" if None in counts else f"{sum(counts):,}"


def failure_lines(record: RoundRecord) -> list[str]:
    """Return one line for each client that failed."""
    return [f"client {failure.client} failed: {failure.reason}" for failure in record.failures]


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return what was reached, metric by metric, and what it cost."""
    first, last = summary["first"], summary["last"]
    reached = (
        [
            f"{name}: {as_number(first['metrics'][name])} -> {as_number(value)}"
            for name, value in sorted(last["metrics"].items(), reverse=True)
            if name in first["metrics"]
        ]
        if first and last
        else []
    )
    cost = (
        f"{summary['num_rounds']} rounds in {as_seconds(summary['seconds'])}, up {as_bytes(summary['bytes_up'])}, "
        f"down {as_bytes(summary['bytes_down'])}, {summary['num_failures']} failed replies"
    )
    return [*reached, cost, *_privacy(summary)]


def _privacy(summary: Mapping[str, Any]) -> list[str]:
    if (said := summary.get("privacy")) is None:
        return []
    valid = f"; {said['valid_for']}" if "valid_for" in said else ""
    return [
        f"privacy of one {said['unit']}: epsilon {as_number(said['epsilon'])} at delta {said['delta']:g} "
        f"({said['accountant']}, noise {said['randomness']}){valid}"
    ]


def _labels(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_MAX_LABELS]]
    return ", ".join(shown) + (f", {len(counts) - _MAX_LABELS} more" if len(counts) > _MAX_LABELS else "")
