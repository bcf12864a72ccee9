"""What clients keep, on the trainer's disk: ``runs/<run>/<client>/``, with a job's plan and the memories of its rounds.

A run is Flower's. Joining replaces all that a client kept in it by one rename; a memory is one file, whole or absent.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import final

from flwr.app import ConfigRecord, RecordDict

from fedpeft.errors import ResumeError
from fedpeft.files import commit_folder, flush_folder, locked
from fedpeft.rounds.memory_folder import MemoryFolder

__all__ = ["KEEP_RUNS", "States", "opened"]

KEEP_RUNS = 4
"""The runs that were last worked for; older ones are forgotten when a node joins a new one."""
_FORMAT = 1


@final
@dataclass(frozen=True)
class States:
    """The folder of all that clients keep."""

    path: Path

    def of(self, run: int, client: int) -> RecordDict:
        """Return a client's record as joining left it, without memories; empty where it has not joined.

        Raises:
            ResumeError: it is damaged; names the file and the remedy.
        """
        folder = self._runs / str(run) / str(client)
        if not folder.is_dir():
            return RecordDict()
        try:
            header, plan = json.loads((folder / "join.json").read_text("utf-8")), (folder / "plan.bin").read_bytes()
            if header["format"] != _FORMAT or sha256(plan).hexdigest() != header["plan_sha256"]:
                raise ValueError("the plan does not match its digest, or the format is another")
            return RecordDict({"run": ConfigRecord({"job": str(header["job"]), "plan": plan})})
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ResumeError(f"{folder}: damaged ({reason}); remove this folder and start a new run") from error

    def join(self, run: int, client: int, record: RecordDict) -> None:
        """Keep what joining gave, and forget all that this client kept in the run before."""
        job, plan = _joined(record)
        final_folder = self._runs / str(run) / str(client)
        partial = final_folder.with_name(f".{client}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        header = {"format": _FORMAT, "job": job, "plan_sha256": sha256(plan).hexdigest()}
        (partial / "join.json").write_text(json.dumps(header), encoding="utf-8")
        (partial / "plan.bin").write_bytes(plan)
        commit_folder(partial, final_folder)
        flush_folder(self._runs)
        for old in self._newest()[KEEP_RUNS:]:
            shutil.rmtree(old)

    @contextmanager
    def lent(self, run: int, client: int, record: RecordDict) -> Iterator[None]:
        """Put a client's memories into its record; what it holds at the block's end is kept, unless that raises."""
        folder = self._runs / str(run)
        if folder.is_dir():
            os.utime(folder)
        with MemoryFolder(path=folder, checkpoint_every=1).lent(client, record):
            yield

    def newest_plan(self, job: str) -> bytes | None:
        """Return the plan of a job that was last worked for; None where nobody has joined it."""
        for run in self._newest():
            for folder in sorted(run.glob("[0-9]*")):
                found, plan = _joined(self.of(int(run.name), int(folder.name)))
                if found == job:
                    return plan
        return None

    @property
    def _runs(self) -> Path:
        return self.path / "runs"

    def _newest(self) -> list[Path]:
        found = [path for path in self._runs.glob("[0-9]*") if path.is_dir()]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def _joined(record: RecordDict) -> tuple[str, bytes]:
    """Return job and plan as the client's half keeps them."""
    kept = record.config_records["run"]
    job, plan = kept["job"], kept["plan"]
    if not isinstance(job, str) or not isinstance(plan, bytes):
        raise TypeError(f"a joined client keeps a job and a plan, not {type(job).__name__} and {type(plan).__name__}")
    return job, plan


@contextmanager
def opened(path: Path) -> Iterator[States]:
    """Open the folder, made where it is missing, for this process alone.

    Raises:
        InputError: another trainer has it.
    """
    (path / "runs").mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(path / "lock", refusal=f"{path}: another trainer keeps its state there; give each its own --state"):
        yield States(path)
