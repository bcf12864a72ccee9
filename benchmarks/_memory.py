"""What a stretch of a process needs at its highest, from the kernel: Linux only."""

from pathlib import Path

__all__ = ["baseline", "peak", "resident"]


def baseline() -> int:
    """Return the resident bytes, and have the kernel's peak of them begin here."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident()


def resident() -> int:
    """Return the resident bytes."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most resident bytes since then."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
