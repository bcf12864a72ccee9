"""Small experiments for every test: a tiny model built from a config, bundled data, nothing downloaded."""

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fedpeft import config, plugins
from fedpeft.config import Experiment
from fedpeft.data.sources.digits import Digits

TINY_VIT: dict[str, Any] = {
    "name": "tiny-vit",
    "seed": 3,
    "model": {
        "name": "tiny",
        "architecture": "vit",
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 32,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "dropout": 0.1,
    },
    "data": {"name": "digits", "classes": [0, 1, 2]},
    "partition": {"name": "iid", "num_clients": 3},
    "task": {"name": "image_classification"},
    "adapter": {"name": "lora", "rank": 2, "alpha": 4},
    "train": {"local_steps": 3, "batch_size": 16, "learning_rate": 0.01},
    "rounds": {"num_rounds": 3},
    "compute": {"num_threads": 1},
}


NEEDED: dict[str, dict[str, Any]] = {
    "fedsa_lora": {"evaluate": {"on_clients": True}, "train": {"local_steps": 2}},
    "scaffold": {"train": {"optimizer": "sgd", "learning_rate": 0.1}},
}
"""Settings without which a strategy is refused; two steps move A, whose first gradient is zero as B is."""


PUBLIC: dict[str, Any] = {
    "calibration": {"num_examples": 12, "batch_size": 5},
    "calibration_data": {"name": "digits", "classes": [0, 1, 2]},
}
"""Public examples, for adapters whose plan is made from some."""


def merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table with keys, or keys of sub-tables, changed; a table with another name replaces the old one."""
    result = copy.deepcopy(dict(table))
    for key, value in changes.items():
        old = result.get(key)
        inside = isinstance(value, Mapping) and isinstance(old, dict) and value.get("name") in (None, old.get("name"))
        result[key] = merged(old, value) if inside else value
    return result


def needed(strategy: str, **changes: Any) -> dict[str, Any]:
    """Return the changes with the settings that the strategy, and the adapter they name, ask for."""
    both = merged(_needed_by(changes.get("adapter", {}).get("name", "lora")), NEEDED.get(strategy, {}))
    return merged(merged(both, changes), {"strategy": {"name": strategy}, **NEEDED.get(strategy, {})})


def _needed_by(adapter: str) -> dict[str, Any]:
    """Return the options that the tiny models need, as the adapter promises, and public examples if it looks at any."""
    from tests.conformance.adapters_promised import PROMISES  # test files say it, and they import this module

    module, options = plugins.load("adapter", adapter), PROMISES[adapter].options
    public = PUBLIC if module.make(module.Options(**options)).calibrator() else {}
    return {**public, **({"adapter": {"name": adapter, **options}} if options else {})}


def tiny(out: Path | None = None, **changes: Any) -> Experiment:
    """Return the tiny experiment, changed; results go to ``out``."""
    output = {"output": {"directory": str(out)}} if out else {}
    return config.parse(merged(merged(TINY_VIT, output), changes))


@pytest.fixture(autouse=True, scope="session")
def _digits_once() -> Iterator[None]:
    """Nearly every run reads the bundled digits: the same ones are read once; nobody changes a table."""
    load = cache(Digits.load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "load", lambda self, *, seed: load(self, seed=seed))
        yield


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reaches for a network, and none sees another's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
