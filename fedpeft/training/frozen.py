"""States that enter the lowest block an adapter touches, kept on this machine so that none is computed twice.

Whether a set of examples is kept follows from the experiment and the set alone, never from what else is kept or from
who asks first: states that are kept and states computed with each batch may differ in their last bit. What is kept is
computed in the set's own order in batches of a fixed size, so it has the same bits in every process, and may be thrown
away and made again where room is short.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import final
from weakref import finalize

from torch import Tensor, nn

from fedpeft.config import Experiment
from fedpeft.errors import RunError
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.tasks.base import Batch, Examples, Task
from fedpeft.timing import timed
from fedpeft.training.loop import autocast, to_device
from fedpeft.training.lower import Lower
from fedpeft.training.state_file import read_states, write_states

__all__ = ["Frozen", "Use", "training_use"]


@final
@dataclass(frozen=True, kw_only=True)
class Use:
    """How often each example of a set is expected to be asked for."""

    a_turn: float
    """Passes over the set each time it is asked for."""
    turns: float
    """Times it is asked for in the whole run."""


def training_use(experiment: Experiment, mechanism: Mechanism | None, *, num_clients: int, num_examples: int) -> Use:
    """Return what training asks of one client's examples."""
    train, rounds = experiment.train, experiment.rounds
    turns = rounds.num_rounds * (rounds.clients_per_round or num_clients) / num_clients
    if mechanism is not None and mechanism.privacy.unit == "example":
        return Use(a_turn=mechanism.sample_rate * mechanism.steps, turns=turns)
    if train.local_steps is None:
        return Use(a_turn=train.local_epochs, turns=turns)
    return Use(a_turn=train.local_steps * train.batch_size / num_examples, turns=turns)


@final
class Frozen:
    """The lower part of a model, and the states it gave, in files of this process or of several."""

    def __init__(self, lower: Lower, task: Task, experiment: Experiment) -> None:
        self._lower, self._task = lower, task
        self._batch_size, self._precision = experiment.evaluate.batch_size, experiment.compute.precision
        self._most = self._room = experiment.compute.cache_bytes
        self._folder: Path | None = None
        self._own: OrderedDict[Path, int] = OrderedDict()
        self._too_large: set[str] = set()

    def share(self, folder: Path, *, sharers: int) -> None:
        """Keep files in a folder that other processes use too, in this one's part of the room."""
        folder.mkdir(exist_ok=True)
        self._folder, self._room = folder, self._most // sharers

    def joined(self, name: str, examples: Examples, use: Use, *, sets: int = 1) -> Examples:
        """Return the examples with their states; as they are where to keep these would not pay, or needs too much.

        Of so many ``sets``, each used in part at a time, all must fit: to make one again would cost more than it saves.

        Raises:
            RunError: the file cannot be written.
        """
        if not len(examples) or use.a_turn * use.turns < 1 or name in self._too_large:
            return examples
        path = self._place() / f"{name}.states"
        try:
            found = read_states(path, examples)
        except FileNotFoundError:
            if not self._write(path, examples, most=self._most if use.a_turn >= 1 else self._most // sets):
                self._too_large.add(name)
                return examples
            found = read_states(path, examples)
        if path in self._own:
            self._own.move_to_end(path)
        return found

    def prove(self, examples: Examples) -> None:
        """Try a few public examples.

        Raises:
            UnsupportedError: states alone do not stand for the lower part of this model.
        """
        self._lower.prove(self._losses, self._batch(examples))

    @property
    def num_bytes(self) -> int:
        """What this process keeps."""
        return sum(self._own.values())

    def _place(self) -> Path:
        """Return the folder; one of this process's own, gone with it, where none is shared."""
        if self._folder is None:
            self._folder = Path(mkdtemp(prefix="fedpeft-states-"))
            finalize(self, rmtree, self._folder, ignore_errors=True)
        return self._folder

    @timed("forward-backward")
    def _write(self, path: Path, examples: Examples, *, most: int) -> bool:
        try:
            size = write_states(path, self._chunks(examples), most=most, num_rows=len(examples))
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}; lower compute.cache_bytes, or give TMPDIR more room") from error
        if size is None:
            return False
        self._own[path] = size
        while self.num_bytes > self._room and len(self._own) > 1:
            oldest, _ = self._own.popitem(last=False)
            oldest.unlink(missing_ok=True)
        return True

    def _chunks(self, examples: Examples) -> Iterator[tuple[Tensor, list[int]]]:
        for start in range(0, len(examples), self._batch_size):
            batch = self._batch(examples[start : start + self._batch_size])
            states = self._lower.states(self._losses, batch).cpu()
            yield states, _lengths(batch, states)

    def _batch(self, rows: Examples) -> Batch:
        return to_device(self._task.collate(rows), self._lower.model)

    def _losses(self, model: nn.Module, batch: Batch) -> Tensor:
        with autocast(model, self._precision):
            return self._task.losses(model, batch)


def _lengths(batch: Batch, states: Tensor) -> list[int]:
    """Return how many tokens of each example are no padding, which tasks put on the right."""
    if "attention_mask" not in batch:
        return [states.shape[1]] * len(states)
    found: list[int] = batch["attention_mask"].sum(dim=1).tolist()
    return found
