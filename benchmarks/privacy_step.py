"""What a private step costs beside a plain one: time in turns, and peak memory, of LoRA at batch 32.

    python -m benchmarks.privacy_step

A BERT of MiniLM's shape (384 wide, six layers) with random weights, 64 tokens, LoRA of rank 8 on every linear layer of
the body: the hooks path. The private side draws with probability 1, so that both sides always see the same 32 examples.
Time: both sides in turn in one process, medians. Memory: each side in a process of its own, the rise of the peak over
two steps from what was there before. Linux only: the peak is read from /proc.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._memory import baseline, peak
from benchmarks.jobs import ROOT, run_jobs, table, write_results, write_section
from fedpeft import config
from fedpeft.privacy.randomness import source
from fedpeft.training.loop import train_locally
from fedpeft.training.private import Private, train_privately
from fedpeft.training.workbench import Workbench, assemble

BATCH, LENGTH, STEPS, TURNS = 32, 64, 3, 7
AIM_TIME, AIM_MEMORY = 1.25, 1.3
PRECISIONS = ("float32", "bfloat16")


def bench_of(precision: str) -> Workbench:
    """Return the parts, with privacy; the plain side uses the same and looks away from it."""
    return assemble(
        config.parse(
            {
                "name": "privacy-step",
                "model": {
                    "name": "tiny",
                    "architecture": "bert",
                    "hidden_size": 384,
                    "num_layers": 6,
                    "num_heads": 12,
                    "intermediate_size": 1536,
                    "max_positions": LENGTH,
                },
                "data": {"name": "docstrings", "max_per_package": 40, "max_words": 60},
                "partition": {"name": "iid", "num_clients": 1},
                "task": {"name": "sequence_classification", "max_length": LENGTH},
                "adapter": {"name": "lora", "rank": 8},
                "strategy": {"name": "fedavg", "weighting": "uniform"},
                "train": {"local_steps": STEPS, "batch_size": BATCH, "learning_rate": 1e-4},
                "compute": {"num_threads": 1, "precision": precision},
                "privacy": {
                    "unit": "example",
                    "noise_multiplier": 1.0,
                    "delta": 1e-5,
                    "clip": 1.0,
                    "sample_rate": 1.0,
                    "accountant": "rdp",
                },
            }
        )
    )


def steps(bench: Workbench, examples: list[Any], *, private: bool) -> float:
    """Train some steps, privately or not; return the seconds of one."""
    adapted, train, compute = bench.adapted, bench.experiment.train, bench.experiment.compute
    shared = {"task": adapted.task, "train": train, "rate": 1e-4, "seed": 0, "precision": compute.precision}
    parameters = adapted.attached.parameters()
    began = time.perf_counter()
    if private and bench.mechanism is not None:
        noise = source(bench.mechanism.privacy, 0, "benchmark")
        made = Private(mechanism=bench.mechanism, support=adapted.adapter.gradients(), noise=noise, active={})
        train_privately(adapted.attached.model, parameters, examples, private=made, **shared)
    else:
        train_locally(adapted.attached.model, parameters, examples, **shared)
    return (time.perf_counter() - began) / STEPS


def full_batch(bench: Workbench) -> list[Any]:
    """Return 32 examples, all cut to the same length, so that no padding differs."""
    rows = bench.client_examples(0)[0]
    longest = sorted(range(len(rows)), key=lambda at: -len(next(iter(rows[at].values()))))[:BATCH]
    return [rows[at] for at in longest]


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Return one side's peak, or both sides' times in turn."""
    torch.set_num_threads(1)
    bench = bench_of(job["precision"])
    examples = full_batch(bench)
    if "private" in job:
        before = baseline()
        steps(bench, examples, private=job["private"])
        return {**job, "peak_bytes": peak() - before}
    taken: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(TURNS + 1):
        for private in taken:
            seconds = steps(bench, examples, private=private)
            taken[private] += [seconds] if turn else []  # the first turn warms up
    return {**job, "plain_seconds": taken[False], "private_seconds": taken[True]}


def main() -> None:
    """Measure, and write docs/results/privacy_step.json and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "privacy_step.jsonl", help="what is done already")
    given = parser.parse_args()
    jobs: dict[str, Any] = {}
    for precision in PRECISIONS:
        jobs |= {f"time {precision}": {"precision": precision}}
        jobs |= {
            f"{side} {precision}": {"precision": precision, "private": side == "private"}
            for side in ("plain", "private")
        }
    rows = run_jobs(measure, jobs, workers=1, log=given.log)
    write_results("privacy_step", {"rows": rows})
    write_section("privacy_step", _section(rows))


def _section(rows: list[dict[str, Any]]) -> str:
    cells = [_row(precision, [row for row in rows if row["precision"] == precision]) for precision in PRECISIONS]
    return f"""## What a private step costs

LoRA of rank 8 on all linear layers of a BERT of MiniLM's shape, batch {BATCH}, {LENGTH} tokens, gradients of single
examples by hooks, one thread. Time: medians of {TURNS} turns of {STEPS} steps, both sides in turn in one process.
Memory: the rise of the peak, each side in a process of its own. Made by `python -m benchmarks.privacy_step`.

{table(("computed in", "private / plain, time", "aim", "met", "private / plain, peak memory", "aim", "met"), cells)}"""


def _row(precision: str, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    times = next(row for row in rows if "private" not in row)
    pairs = zip(times["private_seconds"], times["plain_seconds"], strict=True)
    slower = statistics.median(private / plain for private, plain in pairs)
    peaks = {row["private"]: row["peak_bytes"] for row in rows if "private" in row}
    larger = peaks[True] / peaks[False]
    return (precision, *_held(slower, AIM_TIME), *_held(larger, AIM_MEMORY))


def _held(ratio: float, aim: float) -> tuple[str, str, str]:
    return f"{ratio:.2f} x", f"at most {aim} x", "yes" if ratio <= aim else "no"


if __name__ == "__main__":
    main()
