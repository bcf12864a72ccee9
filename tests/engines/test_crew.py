"""What the server's side of the worker processes does where no process is needed to see it."""

from pathlib import Path

from fedpeft.engines.crew import Crew
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.training.workbench import assemble
from tests.conftest import tiny


def test_nobody_waits_for_a_reply_that_is_not_under_way(tmp_path: Path) -> None:
    crew = Crew(assemble(tiny()), 2, MemoryFolder(path=tmp_path, checkpoint_every=1))
    assert crew.take([]) == []
    assert crew.take(["never sent"]) == []
