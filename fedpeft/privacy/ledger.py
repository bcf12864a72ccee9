"""What has been charged: one line a round, on the disk before anything of the round is sent, never taken back.

A crash between charge and release leaves a charge for nothing, never a release for nothing. Of a torn last line nothing
was released. A round that is repeated is charged again, since its noise is drawn anew; only where noise is reproducible
and nothing it is added to has changed is the release the same bits, and charged once.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, final

from fedpeft.errors import ResumeError
from fedpeft.files import flush_folder

if TYPE_CHECKING:  # a run directory is read without what accounts for it, which takes seconds to import
    from fedpeft.config.privacy import Privacy
    from fedpeft.privacy.mechanism import Mechanism

__all__ = ["FILE_NAME", "Charge", "Ledger"]

FILE_NAME = "privacy.jsonl"


@final
@dataclass(frozen=True, kw_only=True)
class Charge:
    """One round's releases."""

    round: int
    clients: tuple[int, ...]
    """Who was asked."""
    inputs: str
    """Digest of what the round started from."""


@final
@dataclass(frozen=True)
class Ledger:
    """The charges in a run directory."""

    path: Path

    def charges(self) -> tuple[Charge, ...]:
        """Return all charges; a torn last line is left out.

        Raises:
            ResumeError: a line is damaged; names it.
        """
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []
        return tuple(_read(line, f"{self.path}:{number}") for number, line in enumerate(lines, 1))

    def mark(self) -> str:
        """Return what a checkpoint keeps of the ledger as it is now: its length and digest; nothing of an empty one."""
        return _mark(self.charges())

    def require(self, mark: str) -> None:
        """Refuse a ledger that lacks, or has otherwise, a charge that it had when a checkpoint was written.

        Raises:
            ResumeError: names the file and the remedy.
        """
        count, charges = int(mark.partition(":")[0] or 0), self.charges()
        if _mark(charges[:count]) != mark:
            raise ResumeError(
                f"{self.path}: is not the ledger that the checkpoint was written beside, which had {count} charge(s), "
                f"and {len(charges)} are here: what was spent is not known, so nothing more may be; put the file back, "
                "or start over elsewhere, with a budget that counts this run's as spent"
            )

    def charged_rounds(self, privacy: "Privacy") -> int:
        """Return the rounds of the one who is charged most: of a client, or of all, where drawing is accounted for."""
        return _most(self.charges(), privacy.by_client)

    def charge(self, charge: Charge, mechanism: "Mechanism") -> int:
        """Write a charge ahead of its round; return the charged rounds with it.

        Raises:
            RunError: it would exceed the budget; nothing is written.
            ResumeError: the ledger is damaged.
        """
        charges, privacy = self.charges(), mechanism.privacy
        if privacy.noise == "reproducible" and charge in charges:
            return _most(charges, privacy.by_client)
        total = _most([*charges, charge], privacy.by_client)
        mechanism.require(total)
        self._append(charge, charges)
        return total

    def _append(self, charge: Charge, before: Sequence[Charge]) -> None:
        """Add a line durably, after the last whole one."""
        whole = sum(len(_line(each)) for each in before)
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.truncate(whole)
            file.seek(whole)
            file.write(_line(charge))
            file.flush()
            os.fsync(file.fileno())
        flush_folder(self.path.parent)


def _mark(charges: Sequence[Charge]) -> str:
    return f"{len(charges)}:{sha256(b''.join(map(_line, charges))).hexdigest()}" if charges else ""


def _most(charges: Sequence[Charge], by_client: bool) -> int:
    if not by_client:
        return len(charges)
    return max(Counter(client for charge in charges for client in charge.clients).values(), default=0)


def _line(charge: Charge) -> bytes:
    return json.dumps(asdict(charge), sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _read(line: bytes, where: str) -> Charge:
    try:
        found = json.loads(line)
        read = Charge(round=found["round"], clients=tuple(found["clients"]), inputs=found["inputs"])
        if _line(read) != line + b"\n" or not all(type(n) is int for n in (read.round, *read.clients)):
            raise ValueError("not as it was written")
    except (ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{where}: damaged privacy ledger ({error}): what was spent is not known, so nothing more may be; "
            "start over elsewhere, with a budget that counts this run's as spent"
        ) from error
    return read
