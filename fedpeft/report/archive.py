"""A ComPEFT file: one HF PEFT LoRA adapter, its factors as signs and scales, in a safetensors file.

Yadav, Choshen, Raffel, Bansal (2023), arXiv 2311.13171. What ComPEFT packs is a task vector, what training added to
where it began. B begins at 0, so it is one. Where A began is not in an adapter's files; as in the paper and its code,
A's own values are taken for it. Most of A then becomes 0, though training has moved it little: for an adapter of few
steps this costs more than for one long trained, so evaluate what comes back. Only lora_A and lora_B are packed, A and B
apart; all else (heads, magnitudes, biases) stays bit for bit, since it begins elsewhere than at 0.

Layout: tensor ``compeft`` (uint8), the codec's body; ``exact/NAME``, what stays; metadata ``fedpeft``, one JSON object
with the codec's options, the factors' names, shapes and dtypes, adapter_config.json, and a digest over everything.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedpeft import plugins
from fedpeft.codecs.base import Codec, Common
from fedpeft.errors import InputError, TensorMismatchError, WireError
from fedpeft.files import write_atomic
from fedpeft.report.folders import Folder, factors, roles
from fedpeft.tensors import Spec, Tensors

__all__ = ["MAX_ELEMENTS", "read_archive", "read_meta", "write_archive"]

MAX_ELEMENTS = 1 << 30
"""Of one file, since a few bytes may claim any number of zeros."""
_BODY, _EXACT, _META, _FORMAT = "compeft", "exact/", "fedpeft", 1
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def write_archive(path: Path, folder: Folder, options: Mapping[str, Any], *, where: str) -> int:
    """Pack an adapter; return the file's bytes.

    Raises:
        InputError: no LoRA, options that are not the codec's, or a number that is not finite.
    """
    packed = factors(folder, where=where)
    codec, whole = _codec(options, where), packed.to(torch.float32)
    try:
        body = codec.encode(whole, Common(roles=roles(packed)))
    except TensorMismatchError as error:
        raise InputError(f"{where}: {error}") from error
    rest = folder.tensors.without(packed)
    tensors = Tensors(
        [(_BODY, torch.from_numpy(np.frombuffer(body, np.uint8).copy())), *((_EXACT + n, t) for n, t in rest.items())]
    )
    meta = {
        "format": _FORMAT,
        "options": dict(options),
        "factors": [{"name": s.name, "shape": s.shape, "dtype": s.dtype} for s in packed.manifest()],
        "adapter_config": dict(folder.config),
    }
    meta["digest"] = _digest(meta, tensors)
    data = save({name: value.contiguous() for name, value in tensors.items()}, {_META: json.dumps(meta)})
    write_atomic(path, data)
    return len(data)


def read_archive(path: Path) -> Folder:
    """Unpack an adapter, each tensor in the dtype it had.

    Raises:
        InputError: no ComPEFT file, damaged, or too large; names it.
    """
    meta = read_meta(path)
    try:
        found = load(path.read_bytes())
        tensors = Tensors((name, found[name]) for name in sorted(found, key=lambda name: (name != _BODY, name)))
        if meta["digest"] != _digest({key: value for key, value in meta.items() if key != "digest"}, tensors):
            raise WireError("the digest does not hold")
        specs = [_spec(entry) for entry in meta["factors"]]
        if sum(spec.num_elements for spec in specs) > MAX_ELEMENTS:
            raise WireError(f"more than {MAX_ELEMENTS} elements")
        manifest = [replace(spec, dtype="float32") for spec in specs]
        common = Common(roles=roles(Tensors((spec.name, torch.empty(0)) for spec in specs)))
        whole = _codec(meta["options"], str(path)).decode(found[_BODY].numpy().tobytes(), manifest, common)
        kept = [(spec.name, whole[spec.name].to(_DTYPES[spec.dtype])) for spec in specs]
        rest = [(name.removeprefix(_EXACT), value) for name, value in tensors.items() if name != _BODY]
        return Folder(meta["adapter_config"], Tensors(sorted([*kept, *rest])))
    except (OSError, KeyError, TypeError, ValueError, SafetensorError, WireError, TensorMismatchError) as error:
        raise InputError(f"{path}: damaged ComPEFT file ({error})") from error


def read_meta(path: Path) -> dict[str, Any]:
    """Return what a file says of itself, unchecked.

    Raises:
        InputError: no ComPEFT file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 100_000_000:
                raise ValueError(f"a header of {length} bytes")
            meta = json.loads(json.loads(file.read(length))["__metadata__"][_META])
        if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
            raise ValueError(f"not of format {_FORMAT}")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a ComPEFT file ({type(error).__name__}: {error})") from error
    return meta


def _codec(options: Any, where: str) -> Codec:
    module = vars(plugins.load("codec", _BODY))
    try:
        codec = module["make"](module["Options"].model_validate_json(json.dumps(options)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "options"
        raise InputError(f"{where}: {place} = {first['input']!r}: {first['msg']}") from error
    assert isinstance(codec, Codec)  # noqa: S101 - for the type checker
    return codec


def _spec(entry: Any) -> Spec:
    shape = tuple(entry["shape"])
    if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8 or math.prod(shape) > MAX_ELEMENTS:
        raise WireError(f"shape {str(shape)[:80]}")
    return Spec(name=str(entry["name"]), shape=shape, dtype=str(entry["dtype"]))


def _digest(meta: Mapping[str, Any], tensors: Tensors) -> str:
    text = json.dumps(meta, sort_keys=True) + tensors.digest()
    return hashlib.sha256(text.encode()).hexdigest()
