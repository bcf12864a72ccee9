"""A run's numbers for Prometheus, counted from its rounds: on one port, while the block lasts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from fedpeft.config import Experiment
from fedpeft.errors import InputError
from fedpeft.report.record import RoundRecord
from fedpeft.report.watch import Several, Share, Watcher

__all__ = ["MetricsWatcher", "measured"]


@final
class MetricsWatcher(Watcher):
    """Counts rounds from where this process began to look on; gauges are the newest round's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"fedpeft_{name}", words, labels, registry=registry)

        def gauge(name: str, words: str, *labels: str) -> Gauge:
            return Gauge(f"fedpeft_{name}", words, labels, registry=registry)

        self._rounds = counter("rounds", "Rounds that were committed.")
        self._replies = counter("replies", "Replies of clients that were used.")
        self._refusals = counter("refusals", "Replies that were not used, or never came.", "reason")
        self._bytes = counter("bytes", "Bytes of messages.", "direction")
        self._seconds = counter("seconds", "Wall time of rounds.", "phase")
        self._starts = counter("starts", "How often the job was started.")
        self._round = gauge("round", "The newest round.")
        self._num_rounds = gauge("num_rounds", "Rounds in all.")
        self._epsilon = gauge("epsilon", "Privacy spent so far.")
        self._metric = gauge("metric", "The newest evaluation.", "name")
        self._complete = gauge("complete", "1 once the run is complete.")

    def started(
        self,
        experiment: Experiment,
        *,
        num_clients: int,
        num_parameters: int,
        partition_summary: Sequence[Share],
        first_round: int = 1,
    ) -> None:
        """Count a start."""
        self._starts.inc()
        self._num_rounds.set(experiment.rounds.num_rounds)
        self._round.set(first_round - 1)

    def round_finished(self, record: RoundRecord) -> None:
        """Count a round."""
        self._rounds.inc()
        self._round.set(record.round)
        self._replies.inc(len(record.clients) - len(record.failures))
        for failure in record.failures:
            self._refusals.labels(failure.code).inc()
        self._bytes.labels("up").inc(record.bytes_up)
        self._bytes.labels("down").inc(record.bytes_down)
        for phase, seconds in record.seconds.items():
            self._seconds.labels(phase).inc(seconds)
        for name, value in record.metrics.items():
            self._metric.labels(name).set(value)
        if record.epsilon is not None:
            self._epsilon.set(record.epsilon)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Say that it is complete."""
        self._complete.set(1)


@contextmanager
def measured(watcher: Watcher, *, port: int | None, host: str = "127.0.0.1") -> Iterator[Watcher]:
    """Yield a watcher that also serves metrics at http://HOST:PORT/metrics; the same one where no port is given.

    Raises:
        InputError: the port cannot be had.
    """
    if port is None:
        yield watcher
        return
    registry = CollectorRegistry()
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise InputError(f"metrics at {host}:{port}: {error.strerror}; name another port or address") from error
    try:
        yield Several(watcher, MetricsWatcher(registry))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
