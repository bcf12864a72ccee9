"""Accuracy against bytes: dense codecs both ways, sparse ones up alone and both ways, with and without error feedback.

    python -m benchmarks.bandwidth                      # three seeds, both data sets, all arms
    python -m benchmarks.bandwidth --seeds 1 --datasets mr_polarity --arms float32 "compeft both ways fed back"
    python -m benchmarks.bandwidth --report             # the table and the plot of what the log holds, and no run

MiniLM, first trained whole on a public part (benchmarks/started.py), FedAvg of ten clients that count alike, LoRA of
rank 8 in the last block: movie-review polarity (Pang, Lee 2005) by Dirichlet 0.5, CLINC150 (Larson et al. 2019) by
domain. Needs the data sets as Parquet under FEDPEFT_DATA and the MiniLM package that `make demo` installs. Each run
that ends is a line of docs/results/bandwidth.jsonl, and is not run again.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.bandwidth_report import write_report
from benchmarks.jobs import DATA, committed_log, key_of, read_log, run_jobs
from benchmarks.started import LAST_BLOCK, STARTED, federated, frozen, prepare_started
from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.engines.inline import simulate

NUM_CLIENTS, EVERY, SEEDS = 10, 4, (1, 2, 3)
DATASETS: dict[str, dict[str, Any]] = {
    "mr_polarity": {
        "columns": {"text": "text", "label": "label"},
        "max_length": 32,
        "num_rounds": 24,
        "partition": {"name": "dirichlet", "alpha": 0.5, "num_clients": NUM_CLIENTS},
        "train": {"local_steps": 2, "batch_size": 8, "learning_rate": 1e-3},
    },
    "clinc150": {
        "columns": {"text": "text", "label": "label", "client": "client"},
        "max_length": 24,
        "num_rounds": 32,
        "partition": {"name": "natural"},
        "train": {"local_steps": 4, "batch_size": 8, "learning_rate": 3e-3},
    },
}
_LINEAR = ("attention.self.query", "attention.self.key", "attention.self.value")
_LINEAR += ("attention.output.dense", "intermediate.dense", "output.dense")
_TARGETS = [f"{LAST_BLOCK}{place}" for place in _LINEAR]


def _arms() -> dict[str, dict[str, Any]]:
    """Return arm -> what its experiment has of codecs, feedback and strategy, the most telling first."""
    made, thin, fed = {"name": "compeft"}, {"name": "compeft", "densities": {}}, {"up": True, "down": True}
    both, ffa = {"codec": made, "codec_down": made}, {"strategy": {"name": "ffa_lora", "weighting": "uniform"}}
    found: dict[str, dict[str, Any]] = {
        "float32": {},
        "ffa_lora, compeft both ways fed back": {**both, "feedback": fed, **ffa},
        "compeft both ways fed back": {**both, "feedback": fed},
        "compeft both ways fed back, of the head 5 % too": {"codec": thin, "codec_down": thin, "feedback": fed},
        "compeft both ways": both,
        "compeft up fed back": {"codec": made, "feedback": {"up": True}},
        "compeft up": {"codec": made},
    }
    for name in ("int4", "int8", "bfloat16"):
        found[f"{name} both ways"] = {"codec": {"name": name}, "codec_down": {"name": name}}
    for name in ("top_k", "random_k"):
        found[f"{name} up fed back"] = {"codec": {"name": name}, "feedback": {"up": True}}
        found[f"{name} up"] = {"codec": {"name": name}}
    return {**found, "ffa_lora, float32": ffa}


ARMS = _arms()


@dataclass(frozen=True)
class Job:
    """One arm on one data set with one seed."""

    dataset: str
    arm: str
    seed: int


def given(job: Job) -> dict[str, Any]:
    """Return what a job's experiment is given."""
    spec = DATASETS[job.dataset]
    return {
        "name": f"{job.dataset}-{job.seed}",
        "seed": job.seed,
        "model": frozen(job.dataset),
        "data": {
            "name": "table",
            "path": str(federated(job.dataset)),
            "test_path": str(DATA / job.dataset / "test.parquet"),
            "max_test": 600,
            **spec["columns"],
        },
        "partition": spec["partition"],
        "task": {"name": "sequence_classification", "max_length": spec["max_length"]},
        "adapter": {"name": "lora", "rank": 8, "alpha": 16, "target_modules": _TARGETS},
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "train": {"schedule": "linear", **spec["train"]},
        "rounds": {"num_rounds": spec["num_rounds"], "checkpoint_every": spec["num_rounds"]},
        "evaluate": {"every": EVERY},
        "compute": {"num_threads": 1, "cache_frozen": True},
        **ARMS[job.arm],
    }


def experiment(job: Job, out: Path) -> Experiment:
    """Return the experiment of a job."""
    return config.parse({**given(job), "output": {"directory": str(out)}})


def key(job: Job) -> str:
    """Return what a job's line in the log is found by."""
    return key_of({**given(job), "base": asdict(STARTED[job.dataset])}, job.dataset, job.arm, job.seed)


def work(job: Job) -> dict[str, Any]:
    """Run one job; the curve is [bytes both ways so far, accuracy] at each evaluation."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        summary = simulate(experiment(job, run))
        rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    total, curve = 0, []
    for row in rows:
        total += row["bytes_up"] + row["bytes_down"]
        curve += [[total, row["metrics"]["accuracy"]]] if row["metrics"] else []
    sizes = {name: summary[name] for name in ("bytes_up", "bytes_down", "bytes_up_fp32", "bytes_down_fp32")}
    told = {"num_failures": summary["num_failures"], "seconds": round(time.monotonic() - began, 1)}
    return {**vars(job), "accuracy": curve[-1][1], **sizes, **told, "curve": curve}


def main() -> None:
    """Run what is asked for and is not in the log, and write table and plot of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="run nothing")
    args = parser.parse_args()
    log, every = committed_log("bandwidth"), [Job(d, a, s) for s in SEEDS for d in DATASETS for a in ARMS]
    if not args.report:
        for dataset in args.datasets:
            prepare_started(dataset)
        wanted = [Job(d, arm, seed) for seed in SEEDS[: args.seeds] for d in args.datasets for arm in args.arms]
        run_jobs(work, {key(job): job for job in wanted}, workers=args.workers, log=log)
    write_report(list(read_log(log, [key(job) for job in every]).values()), datasets=DATASETS, arms=ARMS, every=EVERY)


if __name__ == "__main__":
    main()
