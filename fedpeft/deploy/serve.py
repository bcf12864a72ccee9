"""Keep a job alive on a deployment: submit it, follow it, and when its server half dies submit it again.

Each attempt goes on from the run directory with a fencing token of its own, so a server half that was given up for
dead and wakes up cannot commit any more. A SuperLink that is away is waited for; a run that survived it is followed on.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedpeft.config import Experiment
from fedpeft.deploy.submit import submitted
from fedpeft.engines.flower import follow
from fedpeft.engines.operator import CONNECTION, Operator, Status
from fedpeft.errors import RunError
from fedpeft.files import locked
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.watch import Watcher
from fedpeft.rounds import fence

__all__ = ["Patience", "serve"]


@final
@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a dead job is started again, and how long is waited before that."""

    attempts: int = 8
    """Submissions in a row that may end without a new round; each round that is committed begins the count anew."""
    first_seconds: float = 2.0
    """The wait before the second of them; it doubles with each."""
    longest_seconds: float = 60.0
    """The longest wait."""
    outage_seconds: float = 600.0
    """How long a SuperLink that does not answer is waited for, before the job is submitted anew."""

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return float(min(self.first_seconds * 2 ** min(failures - 1, 60), self.longest_seconds))


@final
class _DiedError(RunError):
    """The server half was killed; it need not be waited for."""


@final
@dataclass(frozen=True, kw_only=True)
class _Supervisor:
    operator: Operator
    watcher: Watcher
    patience: Patience
    say: Callable[[str], None]
    sleep: Callable[[float], None]

    def run(self, experiment: Experiment) -> RunDirectory:
        """Submit until the run is complete."""
        failures = 0
        while True:
            before = _rounds(experiment)
            try:
                return self._attempt(_taken_up(experiment))
            except RunError as error:
                failures = 1 if _rounds(experiment) > before else failures + 1
                if failures >= self.patience.attempts:
                    raise RunError(
                        f"gave up after {failures} attempts in a row without a new round; the last one: {error}"
                    ) from error
                pause = self.patience.pause(failures)
                self.say(f"the job died ({_first_line(error)}); starting it again in {pause:.0f} s")
            self.sleep(pause)

    def _attempt(self, experiment: Experiment) -> RunDirectory:
        run, number, done = submitted(self.operator, experiment, watcher=self.watcher)
        token = fence.current(run.path)

        def require_alive() -> None:
            if fence.has_died(run.path, token):
                raise _DiedError(f"the server half of run {number} is gone; Flower has not noticed yet")

        operator = dataclasses.replace(self.operator, require_running=require_alive)
        while True:
            try:
                follow(operator, number, run, self.watcher, done)
            except RunError as error:
                if isinstance(error, _DiedError) or self._over(number):
                    self._stop(number)
                    if not run.summary():
                        raise
                else:
                    self.say(f"run {number} goes on ({_first_line(error)})")
                    done = len(run.records())
                    continue
            self.watcher.finished(run.summary())
            return run

    def _over(self, number: int) -> bool:
        """Wait for the SuperLink and tell whether the run has ended; one that nobody knows any more has."""
        deadline, failures = time.monotonic() + self.patience.outage_seconds, 0
        while (status := self._status(number)) is None and time.monotonic() < deadline:
            failures += 1
            self.sleep(self.patience.pause(failures))
        return status is None or status.text.startswith("finished")

    def _status(self, number: int) -> Status | None:
        try:
            return self.operator.status(number)
        except RunError:
            return None

    def _stop(self, number: int) -> None:
        """Tell the SuperLink not to keep a run whose server half is given up; it is fenced off whether heard or not."""
        try:
            self.operator.ask("stop", str(number), CONNECTION)
        except RunError:
            return


def serve(
    operator: Operator,
    experiment: Experiment,
    *,
    watcher: Watcher,
    patience: Patience | None = None,
    say: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> RunDirectory:
    """Run an experiment to its end, whatever dies on the way; return the run directory. A complete run is left alone.

    Raises:
        InputError: another supervisor works on this run directory, or the run cannot be begun or gone on with.
        RunError: too many attempts in a row brought no new round.
    """
    path = _place(experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"{path}: another fedpeft serve works on this run"
    with locked(path.parent / f".{path.name}.serve", refusal=refusal):
        begun = RunDirectory.begun(experiment)
        if begun is not None and begun.summary():
            begun.require_same(experiment)
            return begun
        supervisor = _Supervisor(
            operator=operator, watcher=watcher, patience=patience or Patience(), say=say, sleep=sleep
        )
        return supervisor.run(experiment)


def _place(experiment: Experiment) -> Path:
    return Path(experiment.output.directory or f"runs/{experiment.name}")


def _taken_up(experiment: Experiment) -> Experiment:
    """Return the experiment that goes on where a run of it began."""
    if RunDirectory.begun(experiment) is None:
        return experiment
    return dataclasses.replace(experiment, output=experiment.output.model_copy(update={"if_exists": "resume"}))


def _rounds(experiment: Experiment) -> int:
    begun = RunDirectory.begun(experiment)
    return len(begun.records()) if begun is not None else 0


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]
