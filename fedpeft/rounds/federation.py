"""What stays the same over all rounds of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from flwr.serverapp import Grid

from fedpeft.report.watch import Watcher
from fedpeft.rounds.fence import Fence
from fedpeft.rounds.guard import Guard
from fedpeft.training.workbench import Workbench

__all__ = ["Federation"]


@final
@dataclass(frozen=True, kw_only=True)
class Federation:
    """Both ends of all exchanges, and who looks on."""

    grid: Grid
    bench: Workbench
    nodes: Mapping[int, int]
    """Client -> Flower node."""
    watcher: Watcher
    fence: Fence
    """What lets this server commit."""
    guard: Guard | None = None
    """Of a run with privacy."""
    workers: int = 0
    """Worker processes behind the grid."""
    stack: int = 1
    """Clients that it trains side by side."""
