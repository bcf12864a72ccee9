"""Clients' memories on the disk, for an engine whose nodes end with the process: ``<client>/round_<n>.safetensors``.

Only clients that keep something have a folder, beyond the thousandth by thousands: ``12000s/12345``. A file is whole
or not there. Of each client those files stay that the newest checkpoints would go on from, so a run that resumes
at any of them finds what its clients knew then. In memory are those of the clients that train.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from flwr.app import RecordDict

from fedpeft.errors import ResumeError
from fedpeft.files import write_atomic
from fedpeft.report.record import RoundRecord
from fedpeft.rounds.checkpoint import KEEP
from fedpeft.rounds.memory import entries, forget, put, unpack_memory
from fedpeft.timing import timed

__all__ = ["MemoryFolder"]

_TOGETHER = 1000
"""Clients in one folder; file systems are slow with a million."""


@final
@dataclass(frozen=True, kw_only=True)
class MemoryFolder:
    """The folder of all clients' memories; it is made when there is something to keep."""

    path: Path
    checkpoint_every: int
    """Rounds between checkpoints."""

    @contextmanager
    def lent(self, client: int, state: RecordDict) -> Iterator[None]:
        """Put a client's memory into its node's record for one message, then take it back to the disk."""
        before = self.read(client)
        put(state, before)
        try:
            yield
        finally:
            after = entries(state)
            forget(state)
        self.keep(client, before, after)

    @timed("record")
    def read(self, client: int) -> dict[int, bytes]:
        """Return a client's memory, round -> packed."""
        return {number: path.read_bytes() for number, path in self._files(client).items()}

    @timed("record")
    def keep(self, client: int, before: Mapping[int, bytes], after: Mapping[int, bytes]) -> None:
        """Write what changed of a client's memory; clients may be served at once, each by one thread."""
        for number, data in after.items():
            if data != before.get(number):
                self._write(client, number, data)

    def rewind(self, round_number: int) -> None:
        """Forget what was kept in rounds after this one."""
        for client in self._clients():
            for number, path in self._files(client).items():
                if number > round_number:
                    path.unlink()

    def require(self, records: Sequence[RoundRecord]) -> None:
        """Refuse to go on after these rounds unless each client that trained in them has its memory here.

        Raises:
            ResumeError: one is missing or damaged; names it and the remedy.
        """
        last = {client: record.round for record in records for client in _trained(record)}
        for client, number in last.items():
            kept = {found: path for found, path in self._files(client).items() if found <= records[-1].round}
            if max(kept, default=-1) < number:
                raise ResumeError(
                    f"{self._folder(client)}: client {client} trained in round {number} and its memory of it is not "
                    "here (it stays with the nodes of the engine that ran it); start a new run"
                )
            unpack_memory(kept[max(kept)].read_bytes(), where=str(kept[max(kept)]))

    def _write(self, client: int, number: int, data: bytes) -> None:
        self._folder(client).mkdir(parents=True, exist_ok=True)
        write_atomic(self._folder(client) / f"round_{number:06d}.safetensors", data)
        self._prune(client, number)

    def _prune(self, client: int, now: int) -> None:
        """Keep the newest file, and the one that each checkpoint there is in this round would go on from."""
        files = self._files(client)
        newest = (now - 1) // self.checkpoint_every * self.checkpoint_every
        ends = [now, *(newest - back * self.checkpoint_every for back in range(KEEP))]
        needed = {max((number for number in files if number <= end), default=None) for end in ends}
        for number in files.keys() - needed:
            files[number].unlink()

    def _files(self, client: int) -> dict[int, Path]:
        """Return round -> file."""
        paths = sorted(self._folder(client).glob("round_*.safetensors"))
        return {int(path.stem.removeprefix("round_")): path for path in paths}

    def _folder(self, client: int) -> Path:
        thousands = client - client % _TOGETHER
        return (self.path / f"{thousands}s" if thousands else self.path) / str(client)

    def _clients(self) -> Iterator[int]:
        for path in self.path.iterdir() if self.path.is_dir() else ():
            own = path.iterdir() if path.name.endswith("s") else (path,)
            yield from (int(each.name) for each in own)


def _trained(record: RoundRecord) -> set[int]:
    """Return the clients that trained for certain: one that failed may have done so before."""
    return set(record.clients) - {failure.client for failure in record.failures}
