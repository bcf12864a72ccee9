"""What benchmarks/privacy.py runs: data, base, partition and training of each part, and a run's experiment and name."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.intents import Base
from benchmarks.jobs import DATA, ROOT, key_of
from benchmarks.started import IN_LAST_BLOCK, STARTED, federated, frozen
from fedpeft import config
from fedpeft.config import Experiment

__all__ = ["COHORT", "CURVE", "SCRATCH", "SETTINGS", "SMALLER", "TUNING_SEED", "Job", "experiment"]

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
        base = asdict(Base() if self.part.startswith("clinc150") else STARTED["mr_polarity"])
        return key_of({**table(self), "made_of": base}, self.part, self.strategy, self.rank, self.rate, self.seed)


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
    compute: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    accountant: str | None = None
    """The default's where unset."""


def _clinc(label: str) -> Callable[[Job], dict[str, Any]]:
    def data(job: Job) -> dict[str, Any]:
        unseen = DATA / "clinc150" / ("val.parquet" if job.seed == TUNING_SEED else "test.parquet")
        columns = {"text": "text", "label": label, **({"client": "client"} if label == "label" else {})}
        return {"path": str(SCRATCH / "train.parquet"), "test_path": str(unseen), "max_test": 1500, **columns}

    return data


def _polarity(job: Job) -> dict[str, Any]:
    folder = DATA / "mr_polarity"
    test = {"test_fraction": 0.2} if job.seed == TUNING_SEED else {"test_path": str(folder / "test.parquet")}
    sizes = {"max_train": 3000, "max_test": 500}
    return {"path": str(federated("mr_polarity")), **test, **sizes, "text": "text", "label": "label"}


_SMALL: dict[str, Any] = {"model": {"name": "pretrained", "path": str(SCRATCH / "base")}, "max_length": 20}
_THREE = {"name": "dirichlet", "alpha": 0.5, "num_clients": 3}
_MINILM: dict[str, Any] = {
    "data": _polarity,
    "model": frozen("mr_polarity"),
    "max_length": 32,
    "compute": {"cache_frozen": True},
    "accountant": "rdp",
    "rates": (1e-3, 3e-3),
}
SETTINGS = {
    "clinc150_example": Setting(
        **_SMALL,
        data=_clinc("client"),
        partition=_THREE,
        lora={"target_modules": ["query", "value"]},
        train={"local_steps": 10, "batch_size": 64, "optimizer": "sgd"},
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
        lora={"target_modules": IN_LAST_BLOCK},
        train={"local_steps": 4, "batch_size": 32, "optimizer": "adamw"},
        num_rounds=10,
        unit="example",
        sample_rate=0.032,
    ),
    "mr_polarity_client": Setting(
        **_MINILM,
        partition={**_THREE, "num_clients": 10},
        lora={"target_modules": IN_LAST_BLOCK},
        train={"local_steps": 2, "batch_size": 8, "optimizer": "adamw"},
        num_rounds=10,
        unit="client",
        delta=MILLIONTH,
        alpha=16.0,
    ),
}
SETTINGS["clinc150_noise"] = replace(SETTINGS["clinc150_example"], rates=(0.3, 1.0, 3.0), seeds=(0,))


def experiment(job: Job, out: Path) -> Experiment:
    """Return the experiment of a job."""
    return config.parse({**table(job), "output": {"directory": str(out)}})


def table(job: Job) -> dict[str, Any]:
    """Return what the experiment's file would say, but where its output goes."""
    made = SETTINGS[job.part]
    private = _private(job, made)
    return {
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
        "compute": {"num_threads": 1, "precision": "float32", **made.compute},
        **({"privacy": private} if private else {}),
    }


def _private(job: Job, made: Setting) -> dict[str, Any]:
    if job.epsilon is None and job.noise is None:
        return {}
    known: dict[str, Any] = {"epsilon": job.epsilon, "noise_multiplier": job.noise, "sample_rate": made.sample_rate}
    if job.cohort is not None:
        known |= {"cohort": job.cohort, "population": 100 * job.cohort}
    known["accountant"] = made.accountant
    stated = {name: value for name, value in known.items() if value is not None}
    return {"unit": made.unit, "delta": made.delta, "clip": made.clip, "noise": "reproducible", **stated}
