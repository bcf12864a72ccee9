"""Which server may commit to a run directory: the one with the newest token, and no other, however late it wakes up.

A token is a number that only rises. Whoever starts a server issues one, durably, before that server begins; each
commit holds the folder's lock and finds its own token on the disk, or is refused. Kleppmann (2016) calls it fencing.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedpeft.errors import ResumeError, RunError
from fedpeft.files import locked, write_atomic

__all__ = ["FILE_NAME", "Fence", "claim", "current", "has_died", "issue", "serving"]

FILE_NAME, _ALIVE = "fence.json", "server-{}.lock"
_PATIENCE_SECONDS = 30.0
"""For another's commit to end; one takes far less, unless its process was stopped in the middle."""


@final
@dataclass(frozen=True)
class Fence:
    """The right to commit to a run directory, until a newer token is issued."""

    folder: Path
    token: int

    @contextmanager
    def held(self) -> Iterator[None]:
        """Commit within this block; no newer token is issued before it ends.

        Raises:
            RunError: a newer token is on the disk; nothing may be written.
            InputError: another process has held the lock too long.
        """
        with _alone(self.folder):
            if (newest := current(self.folder)) != self.token:
                raise RunError(
                    f"{self.folder}: this server has fencing token {self.token} and the newest is {newest}: another "
                    "server has taken over, so nothing more is written here; end this one"
                )
            yield


def issue(folder: Path) -> int:
    """Write the next token and return it; servers with older ones can commit no more.

    Raises:
        ResumeError: the token on the disk is damaged.
        InputError: another process has held the lock too long.
    """
    with _alone(folder):
        token = current(folder) + 1
        write_atomic(folder / FILE_NAME, json.dumps({"fence": token}) + "\n")
    return token


def claim(folder: Path, token: int = 0) -> Fence:
    """Return the right to commit with the token one was given, or with a new one where it is 0.

    Raises:
        RunError: a newer one has been issued since.
        ResumeError: the token on the disk is damaged.
    """
    fence = Fence(folder, token or issue(folder))
    with fence.held():
        return fence


def current(folder: Path) -> int:
    """Return the newest token; 0 where none was issued.

    Raises:
        ResumeError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return 0
    try:
        token = json.loads(path.read_bytes())["fence"]
        if type(token) is not int or token < 1:
            raise ValueError(f"fence = {token!r}, expected a whole number of at least 1")
    except (ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{path}: damaged ({error}): which server may commit is not known; see that none runs, then delete it"
        ) from error
    return int(token)


@contextmanager
def serving(folder: Path, token: int) -> Iterator[None]:
    """Let others on this machine see that the server with this token works, and that it has died if it does.

    An older server, dead or stopped, is in nobody's way: each token has a file of its own.
    """
    begun = _alive(folder, token)
    for old in folder.glob(_ALIVE.format("*")):
        old.unlink(missing_ok=True)
    starting = begun.with_name(f".{begun.name}.partial")
    with locked(starting, refusal=f"{folder}: two servers have token {token}; end one"):
        starting.rename(begun)  # locked before it has the name by which it is found
        try:
            yield
        finally:
            begun.unlink(missing_ok=True)  # it ends in order, and so is told in another way


def has_died(folder: Path, token: int) -> bool:
    """Tell whether the server with this token began and is gone without a word, as after kill -9."""
    import fcntl

    path = _alive(folder, token)
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return path.exists()
    except (FileNotFoundError, BlockingIOError):
        return False


def _alive(folder: Path, token: int) -> Path:
    return folder / _ALIVE.format(token)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    refusal = (
        f"{folder}: another server has been in the middle of a commit for {_PATIENCE_SECONDS:.0f} s; "
        "if its process is stopped or hangs, end it"
    )
    with locked(folder, refusal=refusal, patience=_PATIENCE_SECONDS):
        yield
