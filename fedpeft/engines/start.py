"""What every engine does first: all that can be wrong is found before anything is written or submitted."""

from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.errors import UnsupportedError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.timing import timed
from fedpeft.training.workbench import Workbench, assemble

__all__ = ["ready"]


@timed("load")
def ready(experiment: Experiment, *, stacks: bool = False) -> tuple[Workbench, RunDirectory, bool]:
    """Return all parts, the run directory, and whether a run goes on there.

    ``stacks`` says that the engine trains clients side by side. A run that goes on keeps its plan: what was decomposed
    or calibrated once is not done again.

    Raises:
        InputError: something is wrong with the experiment; nothing has been written.
        ResumeError: the run to go on with is damaged or of another experiment.
    """
    if not stacks and experiment.compute.stack not in (1, "auto"):
        raise UnsupportedError(
            f"compute.stack = {experiment.compute.stack}: nodes of their own train one client at a time, with other "
            "bits; leave it out, or use the inline engine"
        )
    RunDirectory.check(experiment)
    bench = assemble(experiment, _plan(experiment))
    bench.rehearse()
    return bench, *RunDirectory.prepare(experiment)


def _plan(experiment: Experiment) -> Plan | None:
    run = RunDirectory.begun(experiment) if experiment.output.if_exists == "resume" else None
    found = checkpoints.latest(run.checkpoints) if run is not None else None
    return found.plan if found is not None else None
