"""What a client has answered, on its disk before it is sent: the same question has the same answer, for ever after.

So no training is done twice, no noise is drawn twice for one round, which would average out, and nothing is charged
twice. The question is the whole broadcast but for the fencing token: a server that has taken over asks the same, and is
given the same update under its own token. Where clients keep memories nothing is held here: what such a client keeps is
of one run with the server, and it answers alike by training again from the memory that the round began with.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import final

from flwr.app import RecordDict

from fedpeft.errors import WireError
from fedpeft.files import write_atomic
from fedpeft.wire.convert import to_bytes
from fedpeft.wire.message import Broadcast, Update
from fedpeft.wire.payload import pack, unpack
from fedpeft.wire.stored import from_file, to_file

__all__ = ["KEEP", "Answered", "once"]

KEEP = 4
"""The newest so many answers of a client stay."""


@final
@dataclass(frozen=True)
class Answered:
    """One client's folder."""

    folder: Path

    def read(self, key: str) -> RecordDict | None:
        """Return the answer to a question; None where there is none, or it is torn."""
        try:
            return from_file(self._path(key).read_bytes())
        except (FileNotFoundError, WireError):
            return None

    def keep(self, key: str, record: RecordDict) -> None:
        """Write an answer durably, and forget the oldest."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self._path(key), to_file(record))
        kept = sorted(self.folder.glob("*.reply"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        for old in kept[:-KEEP]:
            old.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.reply"


def once(answered: Answered | None, question: RecordDict, work: Callable[[], RecordDict]) -> RecordDict:
    """Return the update that answers a broadcast: the one that was given before, or the one that the work gives now.

    Raises:
        WireError: the question is no broadcast.
        OSError: the answer cannot be written, so it is not given.
    """
    if answered is None:
        return work()
    header, _ = unpack(question, Broadcast)
    key = _key(header)
    known = answered.read(key)
    if known is None:
        known = work()
        answered.keep(key, known)
    return _under(known, header.envelope.fence)


def _key(header: Broadcast) -> str:
    envelope = header.envelope
    whoever = replace(header, envelope=replace(envelope, fence=0))
    return sha256(to_bytes(whoever, payload_sha256=envelope.payload)).hexdigest()


def _under(record: RecordDict, fence: int) -> RecordDict:
    """Return an update under the token of the server that asks now; the very same where it is that already."""
    header, body = unpack(record, Update)
    if header.envelope.fence == fence:
        return record
    return pack(replace(header, envelope=replace(header.envelope, fence=fence)), body)
