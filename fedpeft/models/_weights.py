"""Weights read by the safetensors library alone: no pickle is ever opened, whatever a checkpoint names.

Transformers is handed tensors, not a path. Given a path it would follow an index, a config or a folder layout to files
that are read by unpickling.
"""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from fedpeft.errors import ModelError

__all__ = ["read_weights"]

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONVERT = "convert it: load it where you trust it and save it again with save_pretrained, which writes safetensors"


def read_weights(path: str, revision: str | None) -> dict[str, Tensor]:
    """Return name -> tensor of a checkpoint, one file or many.

    Raises:
        ModelError: no safetensors there, or damaged ones.
    """
    files = _shards(path, revision)
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: the weights cannot be read: {error}") from error


def _shards(path: str, revision: str | None) -> list[Path]:
    if whole := _find(path, _WHOLE, revision):
        return [whole]
    if index := _find(path, _INDEX, revision):
        return [_shard(path, name, revision) for name in _names(index)]
    raise ModelError(f"{path}: no {_WHOLE} there, and nothing else is read; {_contents(path)}{_CONVERT}")


def _names(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not an index of safetensors files") from error


def _shard(path: str, name: str, revision: str | None) -> Path:
    """Only plain names of safetensors files: an index may not lead to a pickle or out of the folder."""
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise ModelError(f"{path}: {_INDEX} names {name!r}; only *.safetensors beside it are read; {_CONVERT}")
    if not (file := _find(path, name, revision)):
        raise ModelError(f"{path}: {_INDEX} names {name!r}, which is not there")
    return file


def _find(path: str, name: str, revision: str | None) -> Path | None:
    if Path(path).is_dir():
        return file if (file := Path(path) / name).is_file() else None
    found = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def _contents(path: str) -> str:
    if not Path(path).is_dir():
        return ""
    return f"there is: {', '.join(sorted(file.name for file in Path(path).iterdir())) or 'nothing'}; "
