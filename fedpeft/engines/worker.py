"""A worker process: all parts of one experiment, and one client, or group of clients, after the other.

What passes between it and the process that started it is pickled by ``multiprocessing``, as that does; both ends are
this library in one run on one machine.
"""

import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, final

from flwr.app import Message

from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.data.own import OwnShares
from fedpeft.data.shares import Shares
from fedpeft.data.store import read_store, write_store
from fedpeft.engines.local import Answering, enrolled_context
from fedpeft.rounds.memory import entries, put
from fedpeft.timing import Clock, running
from fedpeft.training.mapped import map_weights, write_weights
from fedpeft.training.workbench import Workbench, assemble

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["Done", "Order", "Setup", "share", "work"]

_DATA, _PLAN, _WEIGHTS, _STATES = "data", "plan.bin", "weights.bin", "states"


@final
@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker is started with."""

    experiment: Experiment
    folder: Path
    """Where ``share`` wrote."""
    log_level: int
    profiled: bool
    environment: Mapping[str, str]
    """Of who starts it: what it is forked from may have been started earlier."""
    sharers: int = 1
    """Processes that keep states of frozen lower blocks there, this one and the one that started it included."""


@final
@dataclass(frozen=True, kw_only=True)
class Order:
    """Messages to clients that train side by side, mostly one, with what each keeps: round -> packed memory."""

    messages: tuple[Message, ...]
    clients: tuple[int, ...]
    memories: tuple[dict[int, bytes], ...]


@final
@dataclass(frozen=True, kw_only=True)
class Done:
    """The clients' replies, what each keeps now, and where the worker's time went, if anybody asks."""

    replies: tuple[Message, ...]
    memories: tuple[dict[int, bytes], ...]
    seconds: dict[str, float]
    elements: int


def share(bench: Workbench, folder: Path, *, sharers: int) -> None:
    """Write data, plan and frozen weights for worker processes; this process too lies on these weights from now on."""
    _share_states(bench, folder, sharers)
    if not isinstance(bench.shares, OwnShares):  # what is each client's own is read from its own place
        write_store(folder / _DATA, bench.splits, bench.shares if isinstance(bench.shares, Shares) else None)
    (folder / _PLAN).write_bytes(bench.adapted.plan.to_bytes())
    write_weights(bench.adapted.attached.model, folder / _WEIGHTS)
    map_weights(bench.adapted.attached.model, folder / _WEIGHTS)


def work(connection: Connection, setup: Setup) -> None:
    """Say that it is there, load when told to, say None when ready or why not; then answer orders until all is over."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all; the one that started this ends it
    sys.unraisablehook = _end_again
    gc.freeze()  # what was there before the fork stays where it is, shared
    os.environ.clear()
    os.environ.update(setup.environment)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=setup.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    clock = Clock() if setup.profiled else None
    connection.send(None)
    try:
        connection.recv()
        bench, plan = _opened(setup)
    except Exception as error:  # noqa: BLE001 - the boundary: the other process says it
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    answering = Answering(bench)
    while (order := _received(connection)) is not None:
        with running(clock):
            replies, memories = _answered(answering, bench, plan, order)
        seconds, elements = clock.take() if clock else ({}, 0)
        with suppress(OSError):  # if nobody listens any more, the next order is None
            connection.send(Done(replies=replies, memories=memories, seconds=seconds, elements=elements))


def _end(number: int, _: object) -> None:
    """Leave as from a program that is done: unlike the default, nothing is left behind."""
    sys.exit(128 + number)


def _end_again(lost: "UnraisableHookArgs") -> None:
    """Leave a little later where the signal came while an object was deleted, out of which nothing can be raised."""
    if not isinstance(lost.exc_value, SystemExit):
        sys.__unraisablehook__(lost)
        return
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def _opened(setup: Setup) -> tuple[Workbench, bytes]:
    plan = (setup.folder / _PLAN).read_bytes()
    dealt = read_store(setup.folder / _DATA) if (setup.folder / _DATA).is_dir() else None
    bench = assemble(setup.experiment, Plan.from_bytes(plan), dealt)
    map_weights(bench.adapted.attached.model, setup.folder / _WEIGHTS)
    _share_states(bench, setup.folder, setup.sharers)
    return bench, plan


def _share_states(bench: Workbench, folder: Path, sharers: int) -> None:
    if bench.frozen is not None:
        bench.frozen.share(folder / _STATES, sharers=sharers)


def _received(connection: Connection) -> Order | None:
    try:
        order: Order = connection.recv()
    except (EOFError, OSError):
        return None
    return order


def _answered(
    answering: Answering, bench: Workbench, plan: bytes, order: Order
) -> tuple[tuple[Message, ...], tuple[dict[int, bytes], ...]]:
    contexts = [enrolled_context(client, bench, plan) for client in order.clients]
    for context, memory in zip(contexts, order.memories, strict=True):
        put(context.state, memory)
    replies = answering(list(zip(order.messages, contexts, strict=True)))
    return tuple(replies), tuple(entries(context.state) for context in contexts)
