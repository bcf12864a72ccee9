"""Where a trainer listens: a Unix socket that only its owner can reach, or loopback; nothing else."""

import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedpeft.errors import InputError

__all__ = ["Address", "parse"]

_UNIX = "unix://"
_LONGEST_PATH = 107
"""Bytes that a socket's name may have on Linux."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WANTED = "expected unix:///folder/name.sock, 127.0.0.1:PORT or [::1]:PORT"


@final
@dataclass(frozen=True)
class Address:
    """One address, as it was written."""

    text: str
    target: str
    """The same in gRPC's words."""
    path: Path | None = None
    """Of the socket; None on loopback."""

    def __str__(self) -> str:
        return self.text

    def prepare(self) -> None:
        """Make the socket's folder, or see that it is its owner's alone; take away what a killed trainer left there.

        Raises:
            InputError: the folder is open to others, or somebody listens there already.
        """
        if self.path is None:
            return
        folder = self.path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_own(folder, stat.S_IFDIR, "0700")
        if not os.path.lexists(self.path):
            return
        _require_own(self.path, stat.S_IFSOCK, "0600")
        if _is_answered(self.path):
            raise InputError(f"{self}: another process listens there; stop it, or name another socket")
        self.path.unlink()

    def protect(self) -> None:
        """Leave the socket to its owner; until then the folder has done so."""
        if self.path is not None:
            self.path.chmod(0o600)

    def release(self) -> None:
        """Take the socket away."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def require_private(self) -> None:
        """See that only this user, or root, can have put the socket there and can reach it.

        Raises:
            InputError: names the path, its mode and the remedy.
            FileNotFoundError: there is none.
        """
        if self.path is not None:
            _require_own(self.path.parent, stat.S_IFDIR, "0700")
            _require_own(self.path, stat.S_IFSOCK, "0600")


def parse(text: str) -> Address:
    """Read an address.

    Raises:
        InputError: neither an absolute socket path of a length the system takes, nor loopback with a port.
    """
    if text.startswith(_UNIX):
        path = Path(text.removeprefix(_UNIX))
        size = len(os.fsencode(path))
        if not path.is_absolute() or path.name in ("", "..") or size > _LONGEST_PATH:
            raise InputError(
                f"trainer address {text!r}: {_WANTED}, the path absolute, of at most {_LONGEST_PATH} bytes"
            )
        return Address(text, f"unix:{path}", path)
    host, _, port = text.rpartition(":")
    try:
        found = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise InputError(f"trainer address {text!r}: {_WANTED}") from error
    if not found.is_loopback or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise InputError(f"trainer address {text!r}: {_WANTED}; it has no key, so it is never reached over a network")
    return Address(text, f"[{found}]:{port}" if found.version == 6 else f"{found}:{port}")


def _require_own(path: Path, kind: int, wanted: str) -> None:
    found = path.lstat()
    what = "folder" if kind == stat.S_IFDIR else "socket"
    if stat.S_IFMT(found.st_mode) != kind:
        raise InputError(f"{path}: not a {what}")
    if found.st_uid not in (os.geteuid(), 0):
        raise InputError(f"{path}: the {what} belongs to user {found.st_uid}, expected {os.geteuid()}, who runs this")
    if found.st_mode & _OTHERS:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise InputError(
            f"{path}: the {what} has mode {mode}, open to others, expected {wanted}; chmod {wanted} {path}"
        )


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
