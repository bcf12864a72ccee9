"""What the server's side of the worker processes does where no process is needed to see it."""

from pathlib import Path

from fedpeft.engines.crew import Crew
from fedpeft.engines.inline import WorkerGrid
from fedpeft.engines.local import local_client_app
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.rounds.roster import find_clients
from fedpeft.training.workbench import assemble
from tests.conftest import tiny


def test_nobody_waits_for_a_reply_that_is_not_under_way(tmp_path: Path) -> None:
    crew = Crew(assemble(tiny()), 2, MemoryFolder(path=tmp_path, checkpoint_every=1))
    assert crew.take([]) == []
    assert crew.take(["never sent"]) == []


def test_the_handshake_needs_no_worker(tmp_path: Path) -> None:
    bench = assemble(tiny())
    crew = Crew(bench, 2, MemoryFolder(path=tmp_path, checkpoint_every=1))
    grid = WorkerGrid(local_client_app(bench), crew, num_clients=3)
    assert find_clients(grid, bench) == {0: 1, 1: 2, 2: 3}
    assert crew.pids == ()
