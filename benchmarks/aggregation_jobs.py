"""What benchmarks/aggregation.py runs: the strategies, what they share on each data set, and a job's experiment."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.intents import Base
from benchmarks.jobs import DATA, key_of
from benchmarks.started import BASES, IN_LAST_BLOCK, STARTED, federated, frozen
from fedpeft import config
from fedpeft.config import Experiment

__all__ = [
    "PER_CLIENT",
    "SCRATCH",
    "SEEDS",
    "SETTINGS",
    "STRATEGIES",
    "SWEPT",
    "SWEPT_RATES",
    "SWEPT_STEPS",
    "TUNING_SEED",
    "Job",
    "experiment",
]

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
UNWEIGHTED = ("krum", "median", "scaffold", "trimmed_mean")
"""Their clients count alike."""
SGD_FACTOR = 300
"""scaffold's rate over AdamW's where the others train with AdamW."""
SWEPT = ("fedavg", "lora_fair", "fedex_lora", "ffa_lora")
TUNING_SEED, SEEDS = 100, (0, 1, 2)
SWEPT_STEPS, SWEPT_RATES = (1, 4, 16), (0.03, 0.1, 0.3)
SCRATCH = BASES
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
    compute: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    schedule: str | None = None
    weighting: str | None = None
    made_of: dict[str, Any] = field(default_factory=dict)
    """What the base that the benchmark trains is made of."""
    num_clients: int = 10

    @property
    def seen(self) -> int:
        """Examples that all clients together train on, repeats counted."""
        return self.num_rounds * self.num_clients * self.local_steps * self.batch_size


_TEXT = {"text": "text", "label": "label"}
_MINILM: dict[str, Any] = {
    "partition": {"name": "dirichlet", "alpha": 0.5, "num_clients": 10},
    "lora": {"name": "lora", "rank": 8, "alpha": 16, "target_modules": IN_LAST_BLOCK},
    "compute": {"cache_frozen": True},
    "num_rounds": 16,
    "local_steps": 2,
    "batch_size": 8,
    "optimizer": "adamw",
    "rates": (1e-3, 3e-3),
    "schedule": "linear",
    "weighting": "uniform",
    "max_train": 2000,
    "max_test": 500,
}


def _started(part: str) -> dict[str, Any]:
    """Return what the parts on MiniLM share, on the base that is trained on a public part of the data."""
    return {**_MINILM, "model": frozen(part), "made_of": asdict(STARTED[part])}


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
        made_of=asdict(Base()),
    ),
    "mr_polarity": Setting(columns=_TEXT, max_length=32, **_started("mr_polarity")),
    "qnli": Setting(columns={**_TEXT, "text2": "text_b"}, max_length=48, **_started("qnli")),
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

    @property
    def key(self) -> str:
        """What the result is kept under: a sweep's cell that is a run of the table has that run's."""
        base = {"base": made} if (made := SETTINGS[self.part].made_of) else {}
        return key_of({**given(self), **base}, self.part, self.strategy, f"{self.rate:g}", self.seed)

    @property
    def states(self) -> Path:
        """Where the states that enter the lowest trained block lie: one folder for all runs that have the same."""
        made = given(self)
        same = {key: made[key] for key in ("seed", "model", "data", "partition", "task", "evaluate", "compute")}
        return SCRATCH / "states" / key_of({**same, "targets": made["adapter"].get("target_modules")})


def experiment(job: Job, out: Path) -> Experiment:
    """Return the experiment of a job."""
    return config.parse({**given(job), "output": {"directory": str(out)}})


def given(job: Job) -> dict[str, Any]:
    """Return what a job's experiment is given, but where its output goes."""
    made = SETTINGS[job.part]
    steps = job.local_steps or made.local_steps
    num_rounds = made.num_rounds * made.local_steps // steps
    on_clients = job.strategy == PER_CLIENT
    weighting = {} if job.strategy in UNWEIGHTED else _unless_none(weighting=made.weighting)
    return {
        "name": f"{job.part}-{job.strategy}-{job.seed}",
        "seed": job.seed,
        "model": made.model,
        "data": {"name": "table", **_data(job), **made.columns},
        "partition": made.partition,
        "task": {"name": "sequence_classification", "max_length": made.max_length},
        "adapter": ADAPTERS.get(job.strategy, {}) | _targets(made) if job.strategy in ADAPTERS else made.lora,
        "strategy": {"name": job.strategy, **STRATEGIES[job.strategy], **weighting},
        "train": {
            "local_steps": steps,
            "batch_size": made.batch_size,
            **_unless_none(schedule=made.schedule),
            **_optimizer(job),
        },
        "rounds": {"num_rounds": num_rounds, "checkpoint_every": num_rounds},
        "evaluate": {"every": num_rounds, "on_clients": on_clients, "batch_size": 64},
        "compute": {"num_threads": 1, "precision": "float32", **made.compute},
    }


def _data(job: Job) -> dict[str, Any]:
    """Return where a job's examples lie, and which of them score it."""
    made, folder = SETTINGS[job.part], DATA / job.part
    sizes = {key: size for key in ("max_train", "max_test") if (size := getattr(made, key))}
    if job.part == "clinc150":
        unseen = folder / ("val.parquet" if job.tuning else "test.parquet")
        return {"path": str(SCRATCH / "train.parquet"), "test_path": str(unseen), **sizes}
    test = {"test_fraction": 0.2} if job.tuning else {"test_path": str(folder / "test.parquet")}
    return {"path": str(federated(job.part)), **test, **sizes}


def _unless_none(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _optimizer(job: Job) -> dict[str, Any]:
    """Return the optimizer at the job's rate; scaffold's correction is of plain SGD, whose rates are other ones."""
    if SETTINGS[job.part].optimizer == "adamw" and job.strategy == "scaffold":
        return {"optimizer": "sgd", "learning_rate": job.rate * SGD_FACTOR}
    return {"optimizer": SETTINGS[job.part].optimizer, "learning_rate": job.rate}


def _targets(made: Setting) -> dict[str, Any]:
    return {key: made.lora[key] for key in ("target_modules",) if key in made.lora}
