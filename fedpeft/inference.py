"""What is done with a finished run: evaluate it, ask it, hand it on."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fedpeft.config import Experiment
from fedpeft.errors import InputError, ResumeError
from fedpeft.files import commit_folder
from fedpeft.models.plain import write_plain
from fedpeft.report.export import read_meta, read_plan, read_residuals, read_slots
from fedpeft.report.run_directory import RunDirectory
from fedpeft.training.adapted import Adapted, adapt
from fedpeft.training.workbench import Workbench, assemble

__all__ = ["FinishedRun", "evaluate_run", "export_run", "finished_bench", "open_run", "predict"]


@final
@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run directory's adapter in place on its base model."""

    directory: RunDirectory
    experiment: Experiment
    adapted: Adapted


def open_run(path: Path) -> FinishedRun:
    """Load a finished run, without its training data.

    Raises:
        ResumeError: there is no finished run, or the base model is not the one it was trained on.
    """
    directory = RunDirectory.open(path)
    experiment = directory.experiment()
    meta = read_meta(directory.adapter)
    adapted = adapt(experiment, tuple(meta["label_names"]), read_plan(directory.adapter))
    if adapted.base_hash != meta["base_hash"]:
        raise ResumeError(f"{path}: the base model has changed since the run ({experiment.model.table()})")
    adapted.place(read_slots(directory.adapter), read_residuals(directory.adapter))
    return FinishedRun(directory=directory, experiment=experiment, adapted=adapted)


def evaluate_run(path: Path) -> dict[str, float]:
    """Return the adapter's metrics on the experiment's held-out data."""
    bench = finished_bench(path)
    return bench.adapted.task.metrics(bench.score(bench.held_out))


def finished_bench(path: Path) -> Workbench:
    """Return all parts of a finished run, its data among them, the adapter in place.

    Raises:
        ResumeError: there is no finished run.
    """
    directory = RunDirectory.open(path)
    slots, residuals = read_slots(directory.adapter), read_residuals(directory.adapter)
    bench = assemble(directory.experiment(), read_plan(directory.adapter))
    bench.adapted.place(slots, residuals)
    return bench


def predict(run: FinishedRun, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label or a text for each input."""
    adapted = run.adapted
    return adapted.task.predict(adapted.attached.model, adapted.loaded.tokenizer, inputs, adapted.label_names)


def export_run(path: Path, folder: Path, *, merge: bool) -> None:
    """Copy the adapter folder out, or write the plain merged model (safetensors and tokenizer).

    Raises:
        InputError: the folder is in use or cannot be written; it is as it was.
        ResumeError: there is no finished run.
        UnsupportedError: the method cannot be merged.
    """
    folder = folder.resolve()
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: not empty; name another folder")
        with _partial(folder) as partial:
            _write_merged(open_run(path), partial) if merge else _copy_adapter(path, partial)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """Give a folder beside, to be filled; it takes the name when whole, and goes when not."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        commit_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_adapter(path: Path, folder: Path) -> None:
    adapter = RunDirectory.open(path).adapter
    read_slots(adapter)
    read_residuals(adapter)
    shutil.copytree(adapter, folder)


def _write_merged(run: FinishedRun, folder: Path) -> None:
    adapted = run.adapted
    write_plain(adapted.adapter.merge(adapted.attached), adapted.loaded.tokenizer, folder)
