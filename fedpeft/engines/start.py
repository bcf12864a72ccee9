"""What every engine does first: all that can be wrong is found before anything is written or submitted."""

import logging
from dataclasses import replace

from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.errors import UnsupportedError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.timing import timed
from fedpeft.training.precision import faster, measured
from fedpeft.training.workbench import Workbench, assemble

__all__ = ["ready", "settled"]

_LOG = logging.getLogger(__name__)


@timed("load")
def settled(experiment: Experiment) -> Experiment:
    """Return the experiment with the number format it is to have, measured here where that is left open.

    A run that goes on keeps its own: another would be another experiment.

    Raises:
        InputError: something is wrong with the experiment; nothing has been written.
    """
    if experiment.compute.precision != "auto":
        return experiment
    run = RunDirectory.begun(experiment) if experiment.output.if_exists == "resume" else None
    if run is not None:
        return _with_precision(experiment, run.experiment().compute.precision)
    plain = _with_precision(experiment, "float32")
    RunDirectory.check(plain)
    seconds = measured(assemble(plain))
    chosen = faster(seconds)
    told = ", ".join(f"{name} {value:.4f} s" for name, value in seconds.items())
    _LOG.info("compute.precision: %s, of a forward and backward pass: %s", chosen, told)
    return _with_precision(experiment, chosen)


def _with_precision(experiment: Experiment, precision: str) -> Experiment:
    return replace(experiment, compute=experiment.compute.model_copy(update={"precision": precision}))


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
