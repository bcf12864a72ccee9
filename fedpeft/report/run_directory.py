"""One run's folder: the resolved experiment, one line a round, checkpoints, the adapter, the summary, the page."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import tomli_w

from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.errors import ConfigError, InputError, ResumeError
from fedpeft.files import flush_folder, write_atomic
from fedpeft.privacy.ledger import FILE_NAME, Ledger
from fedpeft.report.record import RoundRecord
from fedpeft.report.text import flatten
from fedpeft.timing import timed

__all__ = ["RunDirectory"]

_CONFIG = "config.toml"
_OWNED = (
    "rounds.jsonl",
    "partition.json",
    "stack.json",
    "summary.json",
    "report.html",
    "checkpoints",
    "clients",
    "journal",
    "run.id",
    "adapter",
    _CONFIG,
)


@final
@dataclass(frozen=True)
class RunDirectory:
    """A folder that holds one run. Every file in it is either whole or not there, but for a torn last line."""

    path: Path

    @classmethod
    def create(cls, path: Path, experiment: Experiment, *, overwrite: bool = False) -> "RunDirectory":
        """Start a run in a new or empty folder; with overwrite, what an earlier run wrote there goes first.

        Raises:
            InputError: the folder is in use or cannot be made; nothing has been written.
        """
        resolved = tomli_w.dumps(_without_none(experiment.table()))
        with _named(path):
            _make_room(path, overwrite=overwrite)
            path.mkdir(parents=True, exist_ok=True)
            write_atomic(path / _CONFIG, resolved)
        return cls(path)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Write nothing, and raise what prepare would: nobody waits for a model to hear that the folder is in use.

        Raises:
            InputError: as for prepare.
        """
        path, output = _place(experiment), experiment.output
        if output.if_exists == "resume":
            cls.resume(path, experiment)
            return
        with _named(path):
            _has_room(path, overwrite=output.if_exists == "overwrite")

    @classmethod
    def begun(cls, experiment: Experiment) -> "RunDirectory | None":
        """Return the run directory of the experiment's output table if a run began there."""
        path = _place(experiment)
        return cls(path) if (path / _CONFIG).is_file() else None

    @classmethod
    def prepare(cls, experiment: Experiment) -> tuple["RunDirectory", bool]:
        """Make or take up the run directory that the experiment's output table asks for; True when it resumes.

        Raises:
            InputError: it is in use, cannot be made, or cannot be resumed; nothing has been written.
        """
        path, output = _place(experiment), experiment.output
        if output.if_exists == "resume":
            return cls.resume(path, experiment), True
        return cls.create(path, experiment, overwrite=output.if_exists == "overwrite"), False

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Take up a run that exists.

        Raises:
            ResumeError: there is none, or its experiment cannot be read.
        """
        run = cls(path)
        run.experiment()
        return run

    @classmethod
    def resume(cls, path: Path, experiment: Experiment) -> "RunDirectory":
        """Take up a run of exactly this experiment.

        Raises:
            ResumeError: there is none, it is damaged, or it is of another experiment.
        """
        if not (path / _CONFIG).is_file():
            raise ResumeError(f"{path}: no run to continue: there is no {_CONFIG}; start it without resuming")
        run = cls.open(path)
        run.require_same(experiment)
        return run

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def clients(self) -> Path:
        """The folder of what clients keep between rounds, where they run in the server's process."""
        return self.path / "clients"

    @property
    def ledger(self) -> Ledger:
        """What the run has spent of its privacy budget."""
        return Ledger(self.path / FILE_NAME)

    @property
    def adapter(self) -> Path:
        """The folder of the exported adapter."""
        return self.path / "adapter"

    def experiment(self) -> Experiment:
        """Return the experiment as it was resolved when the run began.

        Raises:
            ResumeError: missing or damaged.
        """
        path = self.path / _CONFIG
        if not path.is_file():
            raise ResumeError(f"{self.path}: no run there: it has no {_CONFIG}")
        try:
            return config.load(path)
        except ConfigError as error:
            raise ResumeError(f"the run's own experiment is damaged: {error}") from error

    def require_same(self, experiment: Experiment) -> None:
        """Refuse another experiment than the one the run began with; where and how it runs may differ.

        Raises:
            ResumeError: names each key that differs, with both values.
        """
        began, now = (dict(flatten(value.table())) for value in (self.experiment(), experiment))
        differing = [
            f"  {key} = {now.get(key, 'unset')!r}, the run began with {began.get(key, 'unset')!r}"
            for key in sorted({*began, *now})
            if began.get(key) != now.get(key) and key.partition(".")[0] not in config.WITHOUT_EFFECT
        ]
        if differing:
            remedy = "set these back, or start a new run in another directory"
            raise ResumeError("\n".join([f"{self.path}: the experiment has changed; {remedy}:", *differing]))

    @timed("record")
    def append(self, record: RoundRecord) -> None:
        """Add one round and make it durable; a checkpoint of the round is written after this, not before."""
        path = self._rounds
        with path.open("ab") as file:
            file.write(f"{record.to_json()}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        flush_folder(self.path)

    def truncate(self, last_round: int) -> None:
        """Forget a torn last line and the rounds after last_round, in one step.

        Raises:
            ResumeError: a line in the middle is damaged; names it.
        """
        kept = [record.to_json() for record in self.records() if record.round <= last_round]
        write_atomic(self._rounds, "".join(f"{line}\n" for line in kept))

    def records(self) -> tuple[RoundRecord, ...]:
        """Return the rounds so far; a torn last line is left out.

        Raises:
            ResumeError: a line is damaged; names it.
        """
        text = self._rounds.read_bytes() if self._rounds.is_file() else b""
        return tuple(_record(line, f"{self._rounds}:{number}") for number, line in enumerate(text.split(b"\n")[:-1], 1))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_atomic(self.path / "summary.json", _pretty(summary))

    def write_partition(self, shares: Sequence[Mapping[str, Any]]) -> None:
        """Write partition.json: what each client holds."""
        write_atomic(self.path / "partition.json", _pretty(list(shares)))

    def write_page(self, page: str) -> Path:
        """Write report.html and return its path."""
        path = self.path / "report.html"
        write_atomic(path, page)
        return path

    def summary(self) -> dict[str, Any]:
        """Return what write_summary wrote; empty while the run is under way.

        Raises:
            ResumeError: the file is damaged.
        """
        return dict(_read(self.path / "summary.json", {}))

    def partition(self) -> list[dict[str, Any]]:
        """Return what write_partition wrote; empty before it has.

        Raises:
            ResumeError: the file is damaged.
        """
        return list(_read(self.path / "partition.json", []))

    @property
    def _rounds(self) -> Path:
        return self.path / "rounds.jsonl"


def _place(experiment: Experiment) -> Path:
    return Path(experiment.output.directory or f"runs/{experiment.name}")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which run directory an error of the file system is about."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: the run directory cannot be made: {error.strerror}") from error


def _make_room(path: Path, *, overwrite: bool) -> None:
    """Leave the folder empty of an earlier run, or refuse; never touches a file that no run wrote."""
    if _has_room(path, overwrite=overwrite):
        return
    for name in _OWNED:
        _remove(path / name)


def _has_room(path: Path, *, overwrite: bool) -> bool:
    """Return whether the folder is free; False where an earlier run may be overwritten, else refuse."""
    if not path.exists() or all(re.fullmatch(r"\..+\.partial", entry.name) for entry in path.iterdir()):
        return True
    if not overwrite:
        raise InputError(f"{path}: not empty; continue that run, overwrite it, or name another directory")
    if not (path / _CONFIG).is_file():
        raise InputError(f"{path}: holds files of something else than a run; name another directory")
    if (path / FILE_NAME).exists():
        raise InputError(
            f"{path}: holds a privacy ledger ({FILE_NAME}), and what was spent on the same data stays spent; "
            "name another directory, and count this run's epsilon too"
        )
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _record(line: bytes, where: str) -> RoundRecord:
    try:
        return RoundRecord.from_json(line.decode())
    except (ResumeError, UnicodeDecodeError) as error:
        raise ResumeError(f"{where}: {error}") from error


def _without_none(value: Any) -> Any:
    """Drop what TOML has no word for; an absent key and None mean the same."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _read(path: Path, otherwise: Any) -> Any:
    if not path.is_file():
        return otherwise
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ResumeError(f"{path}: damaged: {error}") from error
