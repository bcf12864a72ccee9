"""The replies of a round under way, on the disk before they count: a server that was killed asks only for the rest.

    journal/round_000007/inputs              what the round began from
    journal/round_000007/<client>-<fence>    a reply, and the token of the server that took it

A reply is written when it has come and is found to be from whom it should be; all else about it is looked at when its
turn comes, then and after a restart alike. What a round began from decides what its clients were sent, so replies to
another beginning are thrown away with their folder. Folders go when a checkpoint has their round. In memory are the
numbers of the clients.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from flwr.app import RecordDict

from fedpeft.errors import WireError
from fedpeft.files import flush_folder, write_atomic
from fedpeft.strategies.base import State
from fedpeft.timing import timed
from fedpeft.training.workbench import Workbench
from fedpeft.wire.stored import from_file, to_file

__all__ = ["Journal", "Page", "inputs_of", "journal_in"]

_FOLDER = "journal"
_INPUTS = "inputs"
_REPLY = re.compile(r"([0-9]+)-([0-9]+)")


def inputs_of(state: State) -> str:
    """Name all that a round begins from."""
    return "".join(tensors.digest() for tensors in (state.adapter, state.memory, state.exact, state.clip))


@final
@dataclass(frozen=True)
class Journal:
    """The folder of all rounds that no checkpoint has yet."""

    folder: Path

    @timed("record")
    def page(self, round_number: int, inputs: str) -> "Page":
        """Return the page of a round: what it holds was made from the same inputs, or it is empty."""
        path = self.folder / f"round_{round_number:06d}"
        if not _is_of(path, inputs):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            write_atomic(path / _INPUTS, inputs)
            flush_folder(self.folder)
        return Page(path)

    @timed("record")
    def forget(self, through: int) -> None:
        """Remove the pages of rounds that a checkpoint has, and the folder where it is empty."""
        pages = sorted(self.folder.glob("round_*"))
        gone = [path for path in pages if int(path.name.removeprefix("round_")) <= through]
        for path in gone:
            shutil.rmtree(path)
        if len(gone) == len(pages):
            shutil.rmtree(self.folder, ignore_errors=True)


@final
@dataclass(frozen=True)
class Page:
    """One round's replies so far."""

    folder: Path

    def clients(self) -> Iterator[tuple[int, int]]:
        """Yield client and fencing token of each reply there."""
        for path in sorted(self.folder.iterdir()):
            if named := _REPLY.fullmatch(path.name):
                yield int(named[1]), int(named[2])

    @timed("record")
    def write(self, client: int, fence: int, record: RecordDict) -> None:
        """Keep a reply; once this returns it survives whatever happens to this process, or to the machine."""
        write_atomic(self.folder / f"{client}-{fence}", to_file(record))

    @timed("record")
    def read(self, client: int, fence: int) -> RecordDict | None:
        """Return a reply that was kept; None where it is torn."""
        try:
            return from_file((self.folder / f"{client}-{fence}").read_bytes())
        except WireError:
            return None


def journal_in(run: Path, bench: Workbench) -> Journal | None:
    """Return a run's journal; none where clients keep memories, which one that is not asked again would lack."""
    return None if bench.remembers() else Journal(run / _FOLDER)


def _is_of(path: Path, inputs: str) -> bool:
    try:
        return (path / _INPUTS).read_text(encoding="utf-8") == inputs
    except (OSError, UnicodeDecodeError):
        return False
