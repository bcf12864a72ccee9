"""What stays the same over all rounds of a run."""

from dataclasses import dataclass, field
from typing import final

from flwr.serverapp import Grid

from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.watch import Watcher
from fedpeft.rounds.fence import Fence
from fedpeft.rounds.guard import Guard, guard
from fedpeft.rounds.journal import Journal, journal_in
from fedpeft.rounds.score import Score
from fedpeft.training.workbench import Workbench
from fedpeft.wire.signature import Keys

__all__ = ["Federation"]


@final
@dataclass(frozen=True, kw_only=True)
class Federation:
    """What stays the same over all rounds."""

    grid: Grid
    bench: Workbench
    nodes: dict[int, int]
    """Client -> Flower node."""
    watcher: Watcher
    fence: Fence
    """What lets this server commit."""
    guard: Guard | None = None
    """Of a run with privacy."""
    workers: int = 0
    """Worker processes behind the grid."""
    keys: Keys | None = None
    """By which clients sign; None where they have no keys, as in a simulation."""
    score: Score = field(default_factory=Score)
    """Who is left alone for a while."""
    journal: Journal | None = None
    """Keeps the replies of a round under way; None where none outlive the process."""

    @classmethod
    def of(
        cls,
        grid: Grid,
        bench: Workbench,
        run: RunDirectory,
        fence: Fence,
        nodes: dict[int, int],
        *,
        watcher: Watcher,
        workers: int,
        keys: Keys | None,
        journaled: bool,
    ) -> "Federation":
        """Return a run's federation, its clients found."""
        return cls(
            grid=grid,
            bench=bench,
            nodes=nodes,
            watcher=watcher,
            fence=fence,
            guard=guard(bench, run.ledger),
            workers=workers,
            keys=keys,
            score=Score(bench.experiment.rounds.rest_rounds),
            journal=journal_in(run.path, bench) if journaled else None,
        )
