"""What one client keeps between rounds, in its node's own record: Flower carries that from message to message.

Each entry is named by the round it was written in, and a round begins with the newest entry older than itself. So an
entry of a round that was never committed is not read when the round is run again.
"""

import json

from flwr.app import ConfigRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedpeft.errors import ResumeError
from fedpeft.tensors import Tensors

__all__ = ["entries", "forget", "pack_memory", "put", "recall", "remember", "unpack_memory"]

_PREFIX = "memory."
_KEY = "tensors"
_META = "fedpeft"


def recall(state: RecordDict, *, before: int) -> Tensors:
    """Return what was kept in the newest round before this one; nothing where there is none.

    Raises:
        ResumeError: it is damaged.
    """
    found = {number: data for number, data in entries(state).items() if number < before}
    return unpack_memory(found[max(found)], where=f"memory of round {max(found)}") if found else Tensors()


def remember(state: RecordDict, memory: Tensors, *, round_number: int) -> None:
    """Keep the memory of a round, and beside it only the one that the round began with."""
    older = {number: data for number, data in entries(state).items() if number < round_number}
    forget(state)
    put(state, {**({max(older): older[max(older)]} if older else {}), round_number: pack_memory(memory)})


def forget(state: RecordDict) -> None:
    """Leave no memory in the record."""
    for number in entries(state):
        del state[f"{_PREFIX}{number}"]


def entries(state: RecordDict) -> dict[int, bytes]:
    """Return round -> packed memory, ascending."""
    records = {int(name.removeprefix(_PREFIX)): state[name] for name in state if name.startswith(_PREFIX)}
    found = {number: record[_KEY] for number, record in sorted(records.items()) if isinstance(record, ConfigRecord)}
    return {number: data for number, data in found.items() if isinstance(data, bytes)}


def put(state: RecordDict, packed: dict[int, bytes]) -> None:
    """Set entries as they are."""
    for number, data in packed.items():
        state[f"{_PREFIX}{number}"] = ConfigRecord({_KEY: data})


def pack_memory(memory: Tensors) -> bytes:
    """Return a safetensors file that knows the order of its tensors and their digest; equal memory, equal bytes.

    Both are under one key: safetensors writes several in no fixed order.
    """
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in memory.items()}
    return save(tensors, metadata={_META: json.dumps({"names": list(tensors), "digest": memory.digest()})})


def unpack_memory(data: bytes, *, where: str) -> Tensors:
    """Return the tensors as they were packed.

    Raises:
        ResumeError: damaged; names the place.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        meta, found = json.loads(header["__metadata__"][_META]), load(data)
        tensors = Tensors((name, found[name]) for name in meta["names"])
        if tensors.digest() != meta["digest"]:
            raise ValueError("the tensors do not match their digest")
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ResumeError(f"{where}: damaged ({type(error).__name__}: {error}); start a new run") from error
    return tensors
