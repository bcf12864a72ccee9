"""What a file of fedpeft's holds, as rows of text: a wire header, a checkpoint, a ComPEFT file, a safetensors file."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fedpeft.errors import InputError, WireError
from fedpeft.report.archive import read_meta
from fedpeft.report.text import one_line
from fedpeft.wire.convert import MAX_HEADER_BYTES, from_bytes
from fedpeft.wire.message import Broadcast, Evaluated, Header, Join, Joined, Update

__all__ = ["rows"]

Rows = list[tuple[str, str]]
_MAX_ROWS = 200


def rows(path: Path) -> Rows:
    """Return what a file says of itself, key and value; what a sender wrote is on one line and cut.

    ``path`` may be a checkpoint's folder. No tensor is read, and no checksum of a body is checked.

    Raises:
        InputError: it cannot be read, or is none of these.
    """
    file = path / "checkpoint.json" if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    readers: list[Callable[[Path], Rows | None]] = [_checkpoint, _archive, _safetensors, _message]
    for read in readers:
        if (found := read(file)) is not None:
            return [(one_line(key), one_line(value)[:500]) for key, value in found[:_MAX_ROWS]]
    raise InputError(f"{path}: no wire header, checkpoint, ComPEFT file or safetensors file, or damaged")


def _message(path: Path) -> Rows | None:
    with path.open("rb") as file:
        data = file.read(MAX_HEADER_BYTES + 1)
    kinds: tuple[type[Header], ...] = (Broadcast, Update, Evaluated, Join, Joined)
    for kind in kinds:
        try:
            header, digest = from_bytes(data, kind)
        except WireError:
            continue
        envelope = header.envelope
        own = {name: value for name, value in vars(header).items() if name != "envelope"}
        shared = {name: value for name, value in vars(envelope).items() if name not in ("carries", "source")}
        said = {"message": kind.__name__.lower(), **own, **shared, "payload_sha256": digest.hex()}
        counts = {name: vars(envelope.carries)[name] for name in ("manifest_hash", "num_elements")}
        return [*_pairs({**said, **counts}), *_tensor_rows((s.name, s.shape, s.dtype) for s in envelope.carries.told)]
    return None


def _checkpoint(path: Path) -> Rows | None:
    header = _json(path) if path.suffix == ".json" else None
    if not isinstance(header, dict) or not {"format", "round", "plan_hash"} <= set(header):
        return None
    flat = {key: value for key, value in header.items() if not isinstance(value, dict)}
    pieces = {
        f"{key}.{name}": len(value) if isinstance(value, list) else value
        for key, piece in header.items()
        if isinstance(piece, dict)
        for name, value in piece.items()
    }
    return [("checkpoint", path.parent.name), *_pairs({**flat, **pieces})]


def _archive(path: Path) -> Rows | None:
    try:
        meta = read_meta(path)
        tensors = [(entry["name"], entry["shape"], entry["dtype"]) for entry in meta["factors"]]
        config = dict(meta["adapter_config"])
    except (InputError, KeyError, TypeError, ValueError):
        return None
    said = {"ComPEFT file": path.name, "bytes": path.stat().st_size, **dict(meta["options"])}
    own = {key: config.get(key) for key in ("peft_type", "base_model_name_or_path", "r", "lora_alpha")}
    return [*_pairs({**said, **own, "digest": meta.get("digest")}), *_tensor_rows(tensors)]


def _safetensors(path: Path) -> Rows | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= min(100_000_000, path.stat().st_size) else b""
    try:
        header = json.loads(text)
        tensors = [(k, v["shape"], v["dtype"]) for k, v in header.items() if k != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return [("safetensors file", path.name), ("num_tensors", str(len(tensors))), *_tensor_rows(tensors)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def _pairs(values: dict[str, Any]) -> Rows:
    return [(key, str(value)) for key, value in values.items()]


def _tensor_rows(tensors: Iterable[tuple[Any, Any, Any]]) -> Rows:
    return [(f"tensor {name}", f"{list(shape)} {dtype}") for name, shape, dtype in tensors]
