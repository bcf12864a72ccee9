"""Which run of an experiment this is: the same after every restart, and another where the experiment begins anew.

A client that is asked the same by the same run answers alike. Were runs not told apart, one that begins anew, perhaps
over other data, would be given the answers of the last.
"""

import secrets
from pathlib import Path

from fedpeft.errors import ResumeError
from fedpeft.files import write_atomic

__all__ = ["FILE_NAME", "run_id"]

FILE_NAME = "run.id"
_BYTES = 16


def run_id(folder: Path, *, fresh: bool) -> bytes:
    """Return what a run was named when it began; a fresh one is named now.

    Raises:
        ResumeError: the name is damaged.
    """
    path = folder / FILE_NAME
    if fresh or not path.exists():
        write_atomic(path, secrets.token_hex(_BYTES) + "\n")
    try:
        found = bytes.fromhex(path.read_text(encoding="utf-8").strip())
    except ValueError as error:
        raise ResumeError(f"{path}: damaged ({error}); delete it, and clients will train this round again") from error
    if len(found) != _BYTES:
        raise ResumeError(f"{path}: {len(found)} bytes, expected {_BYTES}; delete it, and clients will train again")
    return found
