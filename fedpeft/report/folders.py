"""An HF PEFT adapter's folder as values: its configuration and its tensors, and back."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedpeft.errors import InputError
from fedpeft.files import commit_folder
from fedpeft.tensors import Tensors

__all__ = ["Folder", "factors", "read_folder", "roles", "write_folder"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FLOATS = ("float32", "float16", "bfloat16")


@final
@dataclass(frozen=True)
class Folder:
    """What an adapter's folder holds; tensors are sorted by name."""

    config: Mapping[str, Any]
    """``adapter_config.json``."""
    tensors: Tensors
    """``adapter_model.safetensors``: float32, float16 or bfloat16."""


def read_folder(path: Path) -> Folder:
    """Read an adapter.

    Raises:
        InputError: a file is missing or damaged, or holds what is no float; names it.
    """
    try:
        config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        found = load_file(path / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: not a PEFT adapter of {_CONFIG} and {_WEIGHTS} ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path / _CONFIG}: expected an object, got {type(config).__name__}")
    tensors = Tensors(sorted(found.items()))
    for spec in tensors.manifest():
        if spec.dtype not in _FLOATS:
            raise InputError(f"{path / _WEIGHTS}: tensor {spec}, expected one of {', '.join(_FLOATS)}")
    return Folder(config, tensors)


def write_folder(path: Path, folder: Folder) -> None:
    """Write an adapter that PeftModel loads, whole or not at all.

    Raises:
        InputError: something is there, or it cannot be written.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.exists() and any(path.iterdir()):
            raise InputError(f"{path}: not empty; name another folder")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(
            {name: value.contiguous() for name, value in folder.tensors.items()}, partial / _WEIGHTS, {"format": "pt"}
        )
        (partial / _CONFIG).write_text(json.dumps(folder.config, indent=2), encoding="utf-8")
        commit_folder(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def roles(tensors: Tensors) -> dict[str, str]:
    """Return tensor -> A or B, by peft's own names for LoRA's factors; others are not in it."""
    parts = {name: set(name.split(".")) for name in tensors}
    kinds = {"A": {"lora_A", "lora_embedding_A"}, "B": {"lora_B", "lora_embedding_B"}}
    return {name: role for name, found in parts.items() for role, names in kinds.items() if found & names}


def factors(folder: Folder, *, where: str) -> Tensors:
    """Return LoRA's factors.

    Raises:
        InputError: there is none.
    """
    if found := roles(folder.tensors):
        return folder.tensors.select(found)
    raise InputError(f"{where}: peft_type {folder.config.get('peft_type')!r} has no lora_A and lora_B; expected LoRA")
