"""The server's state on disk: whole or not there, verified when read, continued to the bit."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedpeft.adapters.plan import Plan
from fedpeft.errors import ResumeError, WireError
from fedpeft.files import commit_folder
from fedpeft.strategies.base import State
from fedpeft.tensors import Tensors
from fedpeft.timing import timed

__all__ = ["KEEP", "Checkpoint", "latest", "save"]

KEEP = 2
"""The newest so many checkpoints stay."""
_FORMAT = 5
_TENSORS = ("adapter", "memory", "exact", "clip", "sent")


@final
@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a run stands after a round."""

    round_number: int
    state: State
    plan: Plan
    config_hash: str
    base_hash: str
    ledger: str = ""
    """What was charged until then (``privacy.ledger.Ledger.mark``); empty without privacy."""


@timed("record")
def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint beside the others, commit it by renaming, keep the newest two."""
    partial = folder / f".{_name(checkpoint.round_number)}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _TENSORS:
        save_file(dict(vars(checkpoint.state)[name]), partial / f"{name}.safetensors")
    (partial / "plan.bin").write_bytes(checkpoint.plan.to_bytes())
    (partial / "checkpoint.json").write_text(json.dumps(_header(checkpoint), indent=1))
    final_folder = folder / _name(checkpoint.round_number)
    commit_folder(partial, final_folder)
    for old in _committed(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final_folder


def latest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint, or None where there is none.

    Raises:
        ResumeError: the newest one is damaged; names it and the remedy.
    """
    committed = _committed(folder) if folder.is_dir() else []
    return _read(committed[-1]) if committed else None


def _header(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "round": checkpoint.round_number,
        "config_hash": checkpoint.config_hash,
        "base_hash": checkpoint.base_hash,
        "plan_hash": checkpoint.plan.hash,
        "ledger": checkpoint.ledger,
        **{name: _told(vars(checkpoint.state)[name]) for name in _TENSORS},
    }


def _told(tensors: Tensors) -> dict[str, Any]:
    return {"names": list(tensors), "digest": tensors.digest()}


def _read(folder: Path) -> Checkpoint:
    with _piece(folder / "checkpoint.json") as path:
        header = json.loads(path.read_text(encoding="utf-8"))
        if header["format"] != _FORMAT or folder.name != _name(header["round"]):
            raise ValueError(f"format {header['format']}, round {header['round']}")
        kept = {name: str(header[name]) for name in ("config_hash", "base_hash", "plan_hash", "ledger")}
        sums = {name: (list(header[name]["names"]), header[name]["digest"]) for name in _TENSORS}
    with _piece(folder / "plan.bin") as path:
        plan = Plan.from_bytes(path.read_bytes())
        if plan.hash != kept.pop("plan_hash"):
            raise ValueError("the plan does not match its hash")
    state = State(**{name: _tensors(folder / f"{name}.safetensors", *sums[name]) for name in _TENSORS})
    return Checkpoint(round_number=header["round"], state=state, plan=plan, **kept)


def _tensors(path: Path, names: list[str], digest: str) -> Tensors:
    """Read tensors in the order they were written; safetensors itself keeps none."""
    with _piece(path):
        found = load_file(path)
        tensors = Tensors((name, found[name]) for name in names)
        if len(found) != len(tensors) or tensors.digest() != digest:
            raise ValueError("the tensors do not match their digest")
        return tensors


@contextmanager
def _piece(path: Path) -> Iterator[Path]:
    """Name the piece that cannot be read, and the remedy."""
    try:
        yield path
    except (OSError, KeyError, TypeError, ValueError, SafetensorError, WireError) as error:
        raise ResumeError(
            f"{path.parent}: damaged checkpoint ({path.name}: {type(error).__name__}: {error}); "
            "remove this folder to continue from the one before it"
        ) from error


def _name(round_number: int) -> str:
    return f"round_{round_number:06d}"


def _committed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round_*") if path.is_dir())
