"""The trained adapter as files: fedpeft's own exact form always, HF PEFT's form where peft has the method."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.errors import ResumeError, TensorMismatchError, UnsupportedError, WireError
from fedpeft.files import commit_folder
from fedpeft.report.card import Base, model_card
from fedpeft.tensors import Tensors
from fedpeft.training.adapted import Adapted

__all__ = ["read_meta", "read_plan", "read_slots", "write_adapter"]

_SLOTS, _PLAN, _META = "fedpeft_slots.safetensors", "fedpeft_plan.bin", "fedpeft.json"
_COMMANDS = ("fedpeft predict RUN TEXT", "fedpeft evaluate RUN", "fedpeft export RUN FOLDER --merge")


def write_adapter(
    folder: Path, experiment: Experiment, adapted: Adapted, tensors: Tensors, *, summary: Mapping[str, Any]
) -> str | None:
    """Write the adapter folder, whole or not at all; return why there is no HF PEFT form, or None if there is."""
    adapted.attached.write(tensors)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(dict(tensors), partial / _SLOTS)
    (partial / _PLAN).write_bytes(adapted.plan.to_bytes())
    meta = {
        "label_names": list(adapted.label_names),
        "names": list(tensors),
        "digest": tensors.digest(),
        "base_hash": adapted.base_hash,
        "plan_hash": adapted.plan.hash,
    }
    (partial / _META).write_text(json.dumps(meta, indent=1))
    refusal = _save_peft(partial, adapted)
    card = model_card(experiment, summary, base=_base(adapted), in_peft_format=refusal is None, commands=_COMMANDS)
    (partial / "README.md").write_text(card, encoding="utf-8")
    commit_folder(partial, folder)
    return refusal


def read_meta(folder: Path) -> dict[str, Any]:
    """Return label names and hashes.

    Raises:
        ResumeError: no adapter there, or damaged.
    """
    if not (folder / _META).is_file():
        raise ResumeError(f"{folder.parent}: the run is not finished: it has no {folder.name} yet; resume it first")
    try:
        return dict(json.loads((folder / _META).read_bytes()))
    except (OSError, ValueError) as error:
        raise ResumeError(f"{folder / _META}: damaged ({error})") from error


def read_plan(folder: Path) -> Plan:
    """Return the plan the adapter was trained with."""
    try:
        return Plan.from_bytes((folder / _PLAN).read_bytes())
    except (OSError, WireError) as error:
        raise ResumeError(f"{folder / _PLAN}: damaged ({error})") from error


def read_slots(folder: Path) -> Tensors:
    """Return the trained tensors, checked against their digest."""
    meta = read_meta(folder)
    try:
        found = load_file(folder / _SLOTS)
        tensors = Tensors((name, found[name]) for name in meta["names"])
        if tensors.digest() != meta["digest"]:
            raise TensorMismatchError("digest differs")
    except (OSError, KeyError, SafetensorError, TensorMismatchError) as error:
        raise ResumeError(f"{folder / _SLOTS}: damaged ({error})") from error
    return tensors


def _base(adapted: Adapted) -> Base:
    loaded = adapted.loaded
    return Base(
        reference=loaded.reference,
        revision=loaded.revision,
        kind=adapted.task.kind,
        label_names=adapted.label_names,
    )


def _save_peft(folder: Path, adapted: Adapted) -> str | None:
    loaded = adapted.loaded
    try:
        adapted.adapter.save(adapted.attached, adapted.plan, folder, base=loaded.reference, revision=loaded.revision)
    except UnsupportedError as error:
        return str(error)
    return None
