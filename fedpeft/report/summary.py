"""The last word on a run: what it was, what it reached, what it cost."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import fedpeft
from fedpeft.config import Experiment
from fedpeft.report.record import RoundRecord

__all__ = ["summarise", "versions"]


def summarise(
    experiment: Experiment,
    records: Sequence[RoundRecord],
    *,
    adapter_digest: str,
    privacy: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the summary of a run from its rounds, and its privacy ledger, alone: a resumed run has the same."""
    return {
        "name": experiment.name,
        "config_hash": experiment.hash,
        "seed": experiment.seed,
        "strategy": experiment.strategy.table(),
        "precision": experiment.compute.precision,
        "versions": versions(),
        "num_rounds": max((record.round for record in records), default=0),
        **_metrics([record for record in records if record.metrics]),
        "bytes_up": sum(record.bytes_up for record in records),
        "bytes_down": sum(record.bytes_down for record in records),
        "bytes_up_fp32": sum(record.bytes_up_fp32 for record in records),
        "bytes_down_fp32": sum(record.bytes_down_fp32 for record in records),
        "seconds": round(sum(record.total_seconds for record in records), 3),
        "worker_processes": sorted({record.worker_processes for record in records if record.clients}),
        "stack": sorted({record.stack for record in records if record.clients}),
        "num_failures": sum(len(record.failures) for record in records),
        "adapter_digest": adapter_digest,
        **({} if privacy is None else {"privacy": dict(privacy)}),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "flwr", "peft")}
    return {"fedpeft": fedpeft.__version__, "python": platform.python_version(), **libraries}


def _metrics(evaluated: Sequence[RoundRecord]) -> dict[str, Any]:
    """Return first, last and best evaluation; best has the lowest held-out loss."""
    if not evaluated:
        return {"first": None, "last": None, "best": None}
    best = min(evaluated, key=lambda record: record.metrics.get("loss", 0.0))
    return {"first": _evaluation(evaluated[0]), "last": _evaluation(evaluated[-1]), "best": _evaluation(best)}


def _evaluation(record: RoundRecord) -> dict[str, Any]:
    return {"round": record.round, "metrics": dict(record.metrics)}
