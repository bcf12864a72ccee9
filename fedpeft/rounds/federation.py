"""What stays the same over all rounds of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from flwr.serverapp import Grid

from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.watch import Watcher
from fedpeft.rounds.fence import Fence
from fedpeft.rounds.guard import Guard, guard
from fedpeft.rounds.identity import run_id
from fedpeft.rounds.journal import Journal, journal_in
from fedpeft.rounds.score import Score
from fedpeft.training.workbench import Workbench
from fedpeft.wire.signature import Keys

__all__ = ["Clients", "Federation"]


@final
@dataclass(frozen=True, kw_only=True)
class Clients:
    """How clients are reached, and known."""

    grid: Grid
    nodes: Mapping[int, int]
    """Client -> Flower node."""
    workers: int = 0
    """Worker processes behind the grid."""
    keys: Keys | None = None
    """By which clients sign; None where they have no keys, as in a simulation."""
    stack: int = 1
    """Clients that the grid trains side by side."""

    @property
    def apart(self) -> bool:
        """Whether spares are asked when they are needed: in worker processes nobody is late, and groups stay whole."""
        return self.workers > 0 or self.stack > 1


@final
@dataclass(frozen=True, kw_only=True)
class Federation:
    """What stays the same over all rounds."""

    clients: Clients
    bench: Workbench
    watcher: Watcher
    fence: Fence
    """What lets this server commit."""
    identity: bytes
    """Which run of the experiment this is."""
    guard: Guard | None = None
    """Of a run with privacy."""
    score: Score = field(default_factory=Score)
    """Who is left alone for a while."""
    journal: Journal | None = None
    """Keeps the replies of a round under way; None where none outlive the process."""

    @classmethod
    def of(
        cls,
        clients: Clients,
        bench: Workbench,
        run: RunDirectory,
        fence: Fence,
        watcher: Watcher,
        *,
        journaled: bool,
        fresh: bool,
    ) -> "Federation":
        """Return a run's federation; a fresh run has done nothing yet."""
        return cls(
            clients=clients,
            bench=bench,
            watcher=watcher,
            fence=fence,
            identity=run_id(run.path, fresh=fresh),
            guard=guard(bench, run.ledger),
            score=Score(bench.experiment.rounds.rest_rounds),
            journal=journal_in(run.path, bench) if journaled else None,
        )
