"""Does a run's memory grow with the population, with the cohort, or from round to round?

    python -m benchmarks.scale

The smallest model on virtual clients (partition ``resampled``) of four images each, one local step. Each case is a
fresh process of one thread; what it holds at most, from its start to its end, is the kernel's number (VmHWM), and the
resident memory is read after each round too. Linux only.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from benchmarks._memory import peak, resident
from benchmarks.jobs import ROOT, run_jobs, table, write_results, write_section
from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.engines import inline
from fedpeft.report.record import RoundRecord
from fedpeft.report.watch import Watcher

MIB = 2**20
PRIVATE = {"unit": "client", "delta": 1e-7, "clip": 0.5, "noise_multiplier": 1.0}


def cases(divided: int) -> dict[str, dict[str, Any]]:
    """Return what is run; cohorts are divided by so much."""
    some, many = 1000 // divided, 10_000 // divided
    return {
        "10^4 clients": {"population": 10**4, "cohort": some, "rounds": 10},
        "10^6 clients": {"population": 10**6, "cohort": some, "rounds": 10},
        "a round of few": {"population": 10**6, "cohort": some, "rounds": 1},
        "a round of many": {"population": 10**6, "cohort": many, "rounds": 1},
        "private": {"population": 10**6, "cohort": 200 // divided, "rounds": 2, "private": True},
    }


def experiment(out: Path, case: Mapping[str, Any]) -> Experiment:
    """Return the federation of one case."""
    private = bool(case.get("private"))
    model = {"architecture": "vit", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
    rounds = {"num_rounds": case["rounds"], "clients_per_round": case["cohort"]}
    return config.parse({
        "name": "scale",
        "seed": 1,
        "model": {"name": "tiny", **model, "image_size": 8, "patch_size": 4, "num_channels": 1},
        "data": {"name": "digits"},
        "partition": {"name": "resampled", "num_clients": case["population"], "num_examples": 4},
        "task": {"name": "image_classification"},
        "adapter": {"name": "lora", "rank": 2, "alpha": 4},
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "train": {"local_steps": 1, "batch_size": 4, "learning_rate": 0.01},
        "rounds": {**rounds, "sampling": "poisson" if private else "fixed"},
        "compute": {"num_threads": 1},
        "output": {"directory": str(out)},
        **({"privacy": PRIVATE} if private else {}),
    })  # fmt: skip


@final
class Resident(Watcher):
    """Reads the resident memory after each round."""

    def __init__(self) -> None:
        self.after: list[int] = []

    def round_finished(self, record: RoundRecord) -> None:
        """Read it."""
        self.after.append(resident())


def measure(case: Mapping[str, Any]) -> dict[str, Any]:
    """Run one case in this process."""
    torch.set_num_threads(1)
    looking, began = Resident(), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        summary = inline.simulate(experiment(Path(scratch) / "run", case), watcher=looking)
        files = sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file())
    return {
        **case,
        "peak_bytes": peak(),
        "resident_after_round": looking.after,
        "run_folder_bytes": files,
        "seconds": round(time.perf_counter() - began, 1),
        "num_failures": summary["num_failures"],
        "epsilon": summary.get("privacy", {}).get("epsilon"),
    }


def growth(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return by how much, as a share, memory grows from one case to another, and over the rounds of the largest."""
    most = {name: row["peak_bytes"] for name, row in rows.items()}
    later = rows["10^6 clients"]["resident_after_round"]
    return {
        "population, 10^4 to 10^6": most["10^6 clients"] / most["10^4 clients"] - 1,
        "cohort, ten times": most["a round of many"] / most["a round of few"] - 1,
        "rounds, after the second to after the tenth": later[10] / later[2] - 1,
    }


def main() -> None:
    """Measure, and write docs/results/scale.json and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "scale.jsonl", help="what is done already")
    parser.add_argument("--divided", type=int, default=1, help="divide the cohorts by so much, for a slow machine")
    arguments = parser.parse_args()
    jobs = cases(arguments.divided)
    found = dict(zip(jobs, run_jobs(measure, jobs, workers=1, log=arguments.log), strict=True))
    write_results("scale", {"cohorts_divided_by": arguments.divided, "growth": growth(found), "cases": found})
    write_section("scale", _section(found))


def _section(rows: Mapping[str, Mapping[str, Any]]) -> str:
    grown = growth(rows)
    return f"""## A million clients

The smallest model (a ViT of one layer and 16 dimensions) on virtual clients of four images each, one local step; each
row is a fresh process of one thread. The peak is of the whole process, libraries included. Made by
`python -m benchmarks.scale`; every number is in `docs/results/scale.json`. Times are of a busy machine and only say
that it is minutes.

{_table(rows)}

The peak grows by {grown["population, 10^4 to 10^6"]:+.1%} from ten thousand clients to a million (the target was below
5 %), and by {grown["cohort, ten times"]:+.1%} from one round of a cohort to one of ten times as many. Over the rounds
of the million the resident memory changes by {grown["rounds, after the second to after the tenth"]:+.1%} from the
second to the tenth. The private row is of unit client, its cohort Poisson, at epsilon
{rows["private"]["epsilon"]:.3g}."""


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    head: Sequence[str] = ("case", "clients", "cohort", "rounds", "peak, MiB", "run folder, MiB", "failures", "seconds")
    return table(
        head,
        [
            (
                name,
                f"{row['population']:,}",
                f"{row['cohort']:,}",
                row["rounds"],
                f"{row['peak_bytes'] / MIB:.1f}",
                f"{row['run_folder_bytes'] / MIB:.2f}",
                row["num_failures"],
                f"{row['seconds']:.0f}",
            )
            for name, row in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
