"""Files that are either whole or not there: written beside, flushed, renamed; and where relative paths begin."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpeft.errors import InputError

__all__ = ["ROOT_VARIABLE", "commit_folder", "flush_folder", "locked", "rooted", "write_atomic"]

ROOT_VARIABLE = "FEDPEFT_ROOT"
"""Environment variable: the folder where an experiment's relative paths begin, if not the working directory."""
_LOOK_SECONDS = 0.05


def rooted(path: str) -> Path:
    """Return where a path of an experiment file lies on this machine; the experiment itself stays the same."""
    return Path(os.environ.get(ROOT_VARIABLE, "")) / Path(path).expanduser()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush_folder(path.parent)


@contextmanager
def locked(path: Path, *, refusal: str | None, patience: float = 0.0) -> Iterator[None]:
    """Let one process at a time have this lock; the kernel gives it back however that process ends.

    The path is a folder, or a file, which is made where it is missing. Another's lock is waited for so many seconds,
    and without words of refusal for as long as it takes.

    Raises:
        InputError: another has it; with the refusal's words.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        _take(descriptor, refusal, patience)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, refusal: str | None, patience: float) -> None:
    import fcntl

    if refusal is None:
        return fcntl.flock(descriptor, fcntl.LOCK_EX)
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise InputError(refusal) from error
            time.sleep(_LOOK_SECONDS)


def commit_folder(partial: Path, final: Path) -> None:
    """Rename a finished folder into place and make it durable; one of that name moves aside whole, then goes."""
    for path in (*sorted(partial.rglob("*")), partial):
        _flush(path)
    retired = final.with_name(f".{final.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if final.exists():
        final.rename(retired)
    partial.rename(final)
    flush_folder(final.parent)
    shutil.rmtree(retired, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
