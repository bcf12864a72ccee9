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

__all__ = ["read_meta", "read_plan", "read_residuals", "read_slots", "write_adapter"]

_SLOTS, _PLAN, _META = "fedpeft_slots.safetensors", "fedpeft_plan.bin", "fedpeft.json"
_RESIDUALS = "fedpeft_residuals.safetensors"
"""Group -> (d_out, d_in) added to the frozen weight; not there where no strategy changed any."""
_COMMANDS = ("fedpeft predict RUN TEXT", "fedpeft evaluate RUN", "fedpeft export RUN FOLDER --merge")


def write_adapter(
    folder: Path,
    experiment: Experiment,
    adapted: Adapted,
    tensors: Tensors,
    *,
    residuals: Tensors,
    summary: Mapping[str, Any],
) -> str | None:
    """Write the adapter folder, whole or not at all; return why there is no HF PEFT form, or None if there is."""
    adapted.place(tensors, residuals)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(dict(tensors), partial / _SLOTS)
    if residuals:
        save_file(dict(residuals), partial / _RESIDUALS)
    (partial / _PLAN).write_bytes(adapted.plan.to_bytes())
    meta = {
        "label_names": list(adapted.label_names),
        "names": list(tensors),
        "digest": tensors.digest(),
        "residuals": {"names": list(residuals), "digest": residuals.digest()},
        "base_hash": adapted.base_hash,
        "plan_hash": adapted.plan.hash,
    }
    (partial / _META).write_text(json.dumps(meta, indent=1))
    adapted.adapter.store(adapted.attached, adapted.plan, partial)
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
    return _tensors(folder / _SLOTS, read_meta(folder))


def read_residuals(folder: Path) -> Tensors:
    """Return group -> what is added to its frozen weight, checked against its digest; empty where nothing is.

    Raises:
        ResumeError: no adapter there, or damaged.
    """
    said = read_meta(folder).get("residuals", {"names": []})
    return _tensors(folder / _RESIDUALS, said) if said["names"] else Tensors()


def _tensors(path: Path, said: Mapping[str, Any]) -> Tensors:
    try:
        found = load_file(path)
        tensors = Tensors((name, found[name]) for name in said["names"])
        if tensors.digest() != said["digest"]:
            raise TensorMismatchError("digest differs")
    except (OSError, KeyError, SafetensorError, TensorMismatchError) as error:
        raise ResumeError(f"{path}: damaged ({error})") from error
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
