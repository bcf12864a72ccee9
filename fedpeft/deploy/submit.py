"""Hand an experiment to a running deployment and follow it to its end."""

import tempfile
from pathlib import Path

from fedpeft.config import Experiment
from fedpeft.deploy.init import Deployment
from fedpeft.deploy.local import home
from fedpeft.engines import operator
from fedpeft.engines.bundle import write_bundle
from fedpeft.engines.flower import begin, continued, follow
from fedpeft.engines.operator import Operator
from fedpeft.errors import InputError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.watch import Watcher

__all__ = ["local_operator", "submit", "submitted"]


def local_operator(deployment: Deployment) -> Operator:
    """Return the operator of a deployment that is up on this machine.

    Raises:
        InputError: it is not.
    """
    folder = home(deployment)
    if not (folder / "config.toml").is_file():
        raise InputError(f"{deployment.folder}: is not up here; start it with fedpeft deploy up --local")
    environment = operator.inherited(folder)
    return Operator(environment=environment, folder=folder.parent)


def submit(made: Operator, experiment: Experiment, *, watcher: Watcher) -> RunDirectory:
    """Run an experiment on a deployment whose server's half writes to this machine's disk; return the run directory.

    Raises:
        InputError: something is wrong with the experiment; nothing has been submitted.
        RunError: the run failed; its checkpoint stands.
    """
    run, number, done = submitted(made, experiment, watcher=watcher)
    follow(made, number, run, watcher, done)
    watcher.finished(run.summary())
    return run


def submitted(made: Operator, experiment: Experiment, *, watcher: Watcher) -> tuple[RunDirectory, int, int]:
    """Hand an experiment over; return the run directory, Flower's number, and the rounds recorded already.

    Raises:
        InputError: something is wrong with the experiment; nothing has been submitted.
        RunError: the SuperLink did not take it.
    """
    run, _, done = begin(experiment, watcher)
    with tempfile.TemporaryDirectory(prefix="fedpeft-") as scratch:
        write_bundle(Path(scratch) / "bundle", continued(experiment, run))
        return run, made.run(Path(scratch) / "bundle"), done
