"""Flower's simulation runtime: the same two apps, many worker processes (Ray)."""

import dataclasses
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from fedpeft.config import Experiment
from fedpeft.engines.bundle import write_bundle
from fedpeft.engines.operator import Operator, Status
from fedpeft.engines.start import ready, settled
from fedpeft.engines.superlink import started
from fedpeft.errors import RunError, UnsupportedError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.watch import Watcher
from fedpeft.rounds import fence
from fedpeft.rounds.resume import resumed

__all__ = ["begin", "continued", "follow", "simulate"]

_LOOK_SECONDS = 0.5
"""Between looks at the rounds on the disk."""
_ASK_SECONDS = 5.0
"""Between questions for the run's status, each of which is a process."""
_LAST_ASK_SECONDS = 1.0
"""The same, once the last round is recorded."""
_LOG_CHARACTERS = 4000
_FAILED = "Simulation failed with exception: "
"""What Flower puts before the words of an exception."""


def simulate(experiment: Experiment, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Run one experiment under Flower's simulation runtime and return its summary.

    Raises:
        InputError: something is wrong with the experiment; nothing has been written.
        RunError: the run failed; its checkpoint stands. What failed, or the log's end if nobody foresaw it.
    """
    watcher, experiment = watcher or Watcher(), settled(experiment)
    resources = _resources(experiment)
    run, num_clients, done = begin(experiment, watcher)
    with tempfile.TemporaryDirectory(prefix="fedpeft-", ignore_cleanup_errors=True) as scratch:
        bundle = Path(scratch) / "bundle"
        write_bundle(bundle, continued(experiment, run))
        with started(Path(scratch), modules=bundle) as superlink:
            number = superlink.run(bundle, federation_config=f"num-supernodes={num_clients} {resources}")
            follow(superlink, number, run, watcher, done)
    summary = run.summary()
    watcher.finished(summary)
    return summary


def _resources(experiment: Experiment) -> str:
    """Return what Ray sets aside for one client at a time: its threads, and a whole GPU if it uses one.

    Raises:
        UnsupportedError: a certain GPU is asked for, or worker processes that Ray does not start.
    """
    if experiment.simulation.workers not in (1, "auto"):
        raise UnsupportedError(
            f"simulation.workers = {experiment.simulation.workers}: under Flower's simulation Ray starts as many "
            "workers as compute.num_threads leaves room for; leave it out, or use the inline engine"
        )
    compute, have = experiment.compute, os.cpu_count() or 1
    if compute.device not in ("cpu", "cuda"):
        raise UnsupportedError(
            f"compute.device = {compute.device!r}: under Flower's simulation Ray hands out the GPUs; use 'cuda'"
        )
    threads = have if isinstance(compute.num_threads, str) else min(compute.num_threads, have)
    return f"client-resources-num-cpus={threads}{_gpus(experiment)}"


def _gpus(experiment: Experiment) -> str:
    """Return what Ray sets aside of GPUs: it shows a client its own alone, so that ``cuda`` is the right one there."""
    asked, device = experiment.simulation.gpus_per_client, experiment.compute.device
    if device == "cpu":
        if asked is not None:
            raise UnsupportedError(
                f"simulation.gpus_per_client = {asked} with compute.device = 'cpu': without effect; set compute.device "
                "= 'cuda', or leave it out"
            )
        return ""
    if asked is not None and asked > 1 and asked != int(asked):
        raise UnsupportedError(
            f"simulation.gpus_per_client = {asked}: Ray hands out a share of one GPU or whole ones; expected at most "
            "1, or a whole number"
        )
    return f" client-resources-num-gpus={1.0 if asked is None else float(asked)}"


def begin(experiment: Experiment, watcher: Watcher) -> tuple[RunDirectory, int, int]:
    """Find what can be wrong before anything starts; return the run, its clients, and the rounds recorded already.

    From here on no earlier server of the run can commit.
    """
    bench, run, resume = ready(experiment)
    fence.issue(run.path)
    begun = resumed(run, bench) if resume else None
    watcher.started(
        experiment,
        num_clients=bench.shares.num_clients,
        num_parameters=bench.adapted.initial.num_elements,
        partition_summary=bench.shares.summary(bench.splits.label_names),
        first_round=begun.round_number + 1 if begun else 1,
    )
    return run, bench.shares.num_clients, len(run.records())


def continued(experiment: Experiment, run: RunDirectory) -> Experiment:
    """The run directory is made already, so the server app takes it up, with the token that was issued for it."""
    where, token = str(run.path.resolve()), fence.current(run.path)
    output = experiment.output.model_copy(update={"directory": where, "if_exists": "resume", "fence": token})
    return dataclasses.replace(experiment, output=output)


def follow(superlink: Operator, number: int, run: RunDirectory, watcher: Watcher, done: int) -> None:
    """Show each round as it is recorded, until the run ends.

    Raises:
        RunError: it failed.
    """
    num_rounds = run.experiment().rounds.num_rounds
    status, asked = Status("pending", ""), time.monotonic()
    while not status.text.startswith("finished"):
        time.sleep(_LOOK_SECONDS)
        superlink.require_running()
        done = _show(run, watcher, done)
        if time.monotonic() - asked > (_LAST_ASK_SECONDS if done > num_rounds else _ASK_SECONDS):
            status, asked = superlink.status(number), time.monotonic()
    _show(run, watcher, done)
    if status.text != "finished:completed" or not run.summary():
        raise _failure(status, superlink.output(number))


def _show(run: RunDirectory, watcher: Watcher, done: int) -> int:
    records = run.records()
    for record in records[done:]:
        watcher.round_finished(record)
    return max(done, len(records))


def _failure(status: Status, log: str) -> RunError:
    """Return what the apps said, and nothing else if it is one of our own errors; otherwise the log's end too."""
    reason = status.details.removeprefix(_FAILED).strip()
    if reason and re.search(rf"fedpeft\.errors\.\w+: {re.escape(reason)}", log):
        return RunError(reason)
    end = log[-_LOG_CHARACTERS:]
    return RunError(f"Flower ended the run as {status.text!r}: {reason or 'no reason given'}; its log ends:\n{end}")
