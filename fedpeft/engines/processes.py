"""End what we started and everything it started in turn, whatever session or parent that has moved to.

Flower's processes open sessions of their own and Ray's rename themselves, so neither a process group nor a name finds
them all. What finds them is a variable in the environment that only ours have, and who is whose child. Both are read
from /proc; where there is none, only the process itself is ended, and Flower's own watch over parents does the rest.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["end", "end_all", "ended_by_sigterm", "start", "started_under"]

_PROC = Path("/proc")
_POLITE_SECONDS = 5.0
_ROUNDS = 20
_PAUSE_SECONDS = 0.1

_Identity = tuple[int, int]
"""Process id and the time it started: ids are used again."""


def started_under(name: str, value: str) -> set[_Identity]:
    """Return the living processes with name=value in their environment, and all their descendants."""
    alive = {pid: status for pid in _ids() if (status := _status(pid))}
    wanted = f"{name}={value}".encode()
    found = {pid for pid in alive if wanted in _environment(pid).split(b"\0")}
    while more := {pid for pid, (parent, _) in alive.items() if parent in found and pid not in found}:
        found |= more
    return {(pid, alive[pid][1]) for pid in found}


def start(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own, which says what it has to say in a log."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: "subprocess.Popen[bytes]", *, name: str, value: str) -> None:
    """Ask a process to end, wait a little for all it started, then kill what is left; Ctrl-C waits for that."""
    end_all([process], name=name, value=value)


def end_all(processes: Iterable["subprocess.Popen[bytes]"], *, name: str, value: str) -> None:
    """Ask processes to end, wait a little for all they started, then kill what is left; Ctrl-C waits for that."""
    ours = list(processes)
    with _without_interrupts():
        known = started_under(name, value)
        for process in ours:
            process.terminate()
        deadline = time.monotonic() + _POLITE_SECONDS
        while time.monotonic() < deadline and (_alive(ours) or _living(known)):
            time.sleep(_PAUSE_SECONDS)
        for _ in range(_ROUNDS):
            if not (left := _living(known | started_under(name, value))) and not _alive(ours):
                break
            _kill(ours, left)
            time.sleep(_PAUSE_SECONDS)
        for process in ours:
            process.wait()


def _alive(processes: Iterable["subprocess.Popen[bytes]"]) -> bool:
    return None in [process.poll() for process in processes]  # each one is asked, and so reaped


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the block as an exit does; without this it would leave behind what the block started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handling(signal.SIGTERM, leave):
        yield


@contextmanager
def _without_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handling(signal.SIGINT, signal.SIG_IGN), _handling(signal.SIGTERM, signal.SIG_IGN):
        yield


@contextmanager
def _handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _kill(ours: Iterable["subprocess.Popen[bytes]"], others: set[_Identity]) -> None:
    for process in ours:
        if process.poll() is None:
            process.kill()
    for pid, _ in others:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _living(processes: set[_Identity]) -> set[_Identity]:
    return {(pid, began) for pid, began in processes if (status := _status(pid)) and status[1] == began}


def _ids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()] if _PROC.is_dir() else []


def _status(pid: int) -> tuple[int, int] | None:
    """Return a process's parent and starting time; None when it is gone, or dead and only waited for."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


def _environment(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""
