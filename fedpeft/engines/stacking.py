"""How many clients a process trains side by side: what was asked for, if it is proved; or what is fastest here.

The number is written to the run directory before the first round, with what it was chosen by, and a run that goes on
keeps it: other groups have other bits.
"""

import json
import logging
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from fedpeft.engines.sizing import kilobytes
from fedpeft.errors import ResumeError, RunError
from fedpeft.files import write_atomic
from fedpeft.report.run_directory import RunDirectory
from fedpeft.strategies.base import Turn
from fedpeft.tasks.base import Examples
from fedpeft.timing import timed
from fedpeft.training.cohort import train_cohort
from fedpeft.training.group import Member
from fedpeft.training.loop import to_device
from fedpeft.training.stack_proof import unfit
from fedpeft.training.turn import train_turn
from fedpeft.training.workbench import Workbench

__all__ = ["Stacking", "stacking"]

_LOG = logging.getLogger(__name__)
_FILE = "stack.json"
_MOST = 64
"""Clients side by side."""
_STEPS = 2
"""Of each client in a measurement."""
_BETTER = 0.97
"""Of the best time so far: what twice as many must come to, or the search ends."""
_SHARE = 0.25
"""Of the free memory, for what the backward pass needs of all clients side by side."""


@final
@dataclass(frozen=True, kw_only=True)
class Stacking:
    """The choice and its reason."""

    clients: int
    reason: str
    seconds: dict[str, float] = field(default_factory=dict)
    """Clients side by side -> measured seconds for one step of one of them."""


@timed("load")
def stacking(bench: Workbench, run: RunDirectory, *, drawn: int, workers: int, resume: bool) -> int:
    """Return how many clients of a round train side by side in a process, and keep it with the run.

    Raises:
        ResumeError: the run to go on with does not tell, or what it tells is damaged.
    """
    asked = bench.experiment.compute.stack
    if asked == 1:
        return 1
    if resume:
        return _kept(run.path / _FILE)
    chosen = _chosen(bench, asked, most=min(_MOST, -(-drawn // max(1, workers))))
    if chosen.clients == 1:
        _LOG.warning("compute.stack = %s: clients train one at a time: %s", asked, chosen.reason)
    write_atomic(run.path / _FILE, json.dumps(asdict(chosen), indent=2) + "\n")
    return chosen.clients


def _kept(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["clients"])
    except FileNotFoundError as error:
        raise ResumeError(f"{path}: it is not there, and holds how clients were grouped; start a new run") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(f"{path}: damaged: {error}; start a new run") from error


def _chosen(bench: Workbench, asked: int | str, *, most: int) -> Stacking:
    if (problem := unfit(bench)) is not None:
        return Stacking(clients=1, reason=problem)
    if isinstance(asked, int):
        return Stacking(clients=asked, reason="asked for")
    room = _room(bench)
    seconds = _measured(bench, min(most, room))
    best = min(seconds, key=lambda number: seconds[number])
    told = {str(number): round(value, 6) for number, value in seconds.items()}
    return Stacking(clients=best, reason=f"the fastest of those that fit, at most {min(most, room)}", seconds=told)


def _room(bench: Workbench) -> int:
    """Return for how many clients the backward pass's tensors fit; as many as there may be where nobody tells."""
    free, each = kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024, _saved_bytes(bench)
    device = torch.device(bench.experiment.compute.device)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    return max(1, int(_SHARE * free / each)) if free and each else _MOST


def _saved_bytes(bench: Workbench) -> int:
    """Return the bytes that one client's step keeps for its backward pass, the model's own apart."""
    model, task, size = bench.adapted.attached.model, bench.adapted.task, bench.experiment.train.batch_size
    batch = to_device(task.collate(_examples(bench, 0)[:size]), model)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = task.losses(model, batch)
    del losses
    return sum(kept.values())


def _measured(bench: Workbench, most: int) -> dict[int, float]:
    """Return clients side by side -> seconds a step of one; each number is twice the last, while that helps."""
    short, found, number = _short(bench), {}, 1
    while number <= most:
        found[number] = min(_seconds(short, number) for _ in range(2)) / (number * _STEPS)
        if number > 1 and found[number] > _BETTER * min(value for size, value in found.items() if size < number):
            break
        number *= 2
    return found


def _seconds(bench: Workbench, number: int) -> float:
    """Return how long so many clients take for their steps; what they come to is not looked at."""
    members = [_member(bench, place) for place in range(number)]
    bench.adapted.attached.write(bench.adapted.initial)
    began = time.perf_counter()
    with suppress(RunError):
        if number == 1:
            train_turn(bench, members[0].turn, members[0].examples, client=0)
        else:
            train_cohort(bench, members)
    return time.perf_counter() - began


def _short(bench: Workbench) -> Workbench:
    """Return the same with few steps a client."""
    train = bench.experiment.train.model_copy(update={"local_steps": _STEPS, "local_epochs": 1})
    mechanism = None if bench.mechanism is None else replace(bench.mechanism, steps=_STEPS)
    return replace(bench, experiment=replace(bench.experiment, train=train), mechanism=mechanism)


def _member(bench: Workbench, place: int) -> Member:
    """Return a client of the first round whose examples are held-out ones."""
    slots, initial, strategy = bench.adapted.attached.slots, bench.adapted.initial, bench.strategy
    state = strategy.init(slots, initial)
    turn = Turn(
        slots=slots,
        received=initial,
        beside=strategy.broadcast(slots, state),
        round_number=1,
        num_clients=bench.shares.num_clients,
        learning_rate=bench.experiment.train.learning_rate,
        directive=strategy.directive(slots, state, round_number=1, client=0),
    )
    return Member(client=place, turn=turn, start=initial, examples=_examples(bench, place))


def _examples(bench: Workbench, place: int) -> Examples:
    number, have = bench.experiment.train.batch_size * _STEPS, len(bench.held_out)
    return [bench.held_out[(place * number + each) % have] for each in range(number)]
