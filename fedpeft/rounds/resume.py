"""Where a run stands: the checkpoint it goes on from, and what of the record is forgotten for it."""

from fedpeft.errors import ResumeError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds.checkpoint import Checkpoint
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.strategies.base import State
from fedpeft.training.workbench import Workbench

__all__ = ["checkpoint_of", "resumed"]


def resumed(run: RunDirectory, bench: Workbench, memories: MemoryFolder | None = None) -> Checkpoint | None:
    """Return the newest checkpoint and forget the rounds after it; None where round 0 was never committed.

    Raises:
        ResumeError: the checkpoint is damaged, or of other parts than these, or what clients kept is lost, or what was
            charged.
    """
    found = checkpoints.latest(run.checkpoints)
    if found is not None and found.round_number and bench.remembers():
        _require_memories(run, bench, memories, found.round_number)
    run.truncate(found.round_number if found else -1)
    if memories is not None:
        memories.rewind(found.round_number if found else -1)
    if found is None:
        return None
    now = checkpoint_of(bench, found.state, found.round_number)
    for name in ("config_hash", "base_hash"):
        if vars(found)[name] != vars(now)[name]:
            raise ResumeError(f"{run.checkpoints}: {name} {vars(found)[name][:12]} is not {vars(now)[name][:12]}")
    if found.plan.hash != bench.adapted.plan.hash:
        raise ResumeError(f"{run.checkpoints}: the adapter's plan has changed; the libraries may have been updated")
    run.ledger.require(found.ledger)
    found.state.adapter.require(bench.adapted.attached.manifest(), where=str(run.checkpoints))
    return found


def _require_memories(run: RunDirectory, bench: Workbench, memories: MemoryFolder | None, round_number: int) -> None:
    if memories is None:
        raise ResumeError(
            f"{run.path}: after round {round_number} the clients of strategy {bench.experiment.strategy.name!r} hold "
            "memories, and nodes of Flower lose them with their job; if the run began with 'simulate' in one process, "
            "resume it there, else start a new run"
        )
    memories.require([record for record in run.records() if record.round <= round_number])


def checkpoint_of(bench: Workbench, state: State, round_number: int, *, ledger: str = "") -> Checkpoint:
    """Return what is committed of a round."""
    return Checkpoint(
        round_number=round_number,
        state=state,
        plan=bench.adapted.plan,
        config_hash=bench.experiment.hash,
        base_hash=bench.adapted.base_hash,
        ledger=ledger,
    )
