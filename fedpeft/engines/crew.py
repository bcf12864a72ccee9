"""Worker processes, each served by a thread of this process, so that none waits while the server adds up."""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self, final

from flwr.app import Message

from fedpeft.engines.forking import context, uninterrupted
from fedpeft.engines.worker import Done, Order, Setup, share, work
from fedpeft.errors import FedpeftError, RunError
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.timing import current, phase
from fedpeft.training.workbench import CACHED_CLIENTS, Workbench

__all__ = ["Crew"]

_PATIENCE_SECONDS = 10.0
"""For a process that was told to end, or has closed its end, to be gone."""


@final
@dataclass(frozen=True, kw_only=True)
class _Worker:
    """One process, and this process's end of the pipe to it."""

    process: SpawnProcess | ForkServerProcess
    connection: Connection

    def ready(self, turn: threading.Lock) -> None:
        """Wait until it has all parts; one at a time loads, so that only one holds weights of its own."""
        try:
            self.connection.recv()
            with turn:
                self.connection.send(None)
                problem = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost("started") from error
        if problem is not None:
            raise RunError(f"a worker process could not start: {problem}")

    def ask(self, order: Order) -> Done:
        """Wait for the answer."""
        try:
            self.connection.send(order)
            done: Done = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost(f"trained client {', '.join(map(str, order.clients))}") from error
        return done

    def _lost(self, doing: str) -> RunError:
        self.process.join(_PATIENCE_SECONDS)
        code = self.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return RunError(
            f"worker process {self.process.pid} ended ({how}) while it {doing}; if memory ran out, lower "
            "simulation.workers or train.batch_size; the last checkpoint stands, resume when this is mended"
        )


@final
class Crew:
    """So many workers; whichever is free takes the next message, and what a client keeps is on the disk by its reply.

    A worker that ends makes the run fail at the next ``take``, since a result that depends on which process died
    could not be had again.
    """

    def __init__(self, bench: Workbench, num_workers: int, memories: MemoryFolder) -> None:
        self._bench, self._num_workers, self._memories = bench, num_workers, memories
        self._changed, self._turn = threading.Condition(), threading.Lock()
        self._orders: deque[tuple[Message, ...]] = deque()
        self._done: dict[str, Message] = {}
        self._times: list[tuple[dict[str, float], int]] = []
        self._failure: Exception | None = None
        self._closed = False
        self._waiting: set[str] = set()
        self._workers: list[tuple[_Worker, threading.Thread]] = []
        self._shared = ExitStack()
        self._clock = current()

    def __enter__(self) -> Self:
        """Start the processes; they make themselves ready while the run goes on."""
        try:
            with phase("load"):
                self._start()
        except BaseException:
            self._dismiss()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End them at once: all that is worth keeping is on the disk."""
        self._dismiss()

    def _start(self) -> None:
        scratch = TemporaryDirectory(prefix="fedpeft-", ignore_cleanup_errors=True)
        folder = Path(self._shared.enter_context(scratch))
        share(self._bench, folder, sharers=self._num_workers + 1)
        starting = context()
        setup = Setup(
            experiment=self._bench.experiment,
            folder=folder,
            log_level=logging.getLogger().level,
            profiled=self._clock is not None,
            sharers=self._num_workers + 1,
            environment=dict(os.environ),
        )
        resource_tracker.ensure_running()  # which would let interrupts through again, were it started with the first
        for _ in range(self._num_workers):
            here, there = starting.Pipe()
            process = starting.Process(target=work, args=(there, setup), daemon=True)
            with uninterrupted():
                process.start()
            there.close()
            worker = _Worker(process=process, connection=here)
            thread = threading.Thread(target=self._serve, args=(worker,), daemon=True)
            self._workers.append((worker, thread))
            thread.start()

    def _dismiss(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker, _ in self._workers:
            worker.process.terminate()
        for worker, thread in self._workers:
            worker.process.join(_PATIENCE_SECONDS)
            worker.process.kill()
            worker.process.join()
            thread.join()
            worker.connection.close()
        self._shared.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids."""
        return tuple(worker.process.pid or 0 for worker, _ in self._workers)

    def give(self, messages: Sequence[Message]) -> None:
        """Queue messages that are answered together for the next free worker."""
        with self._changed:
            self._orders.append(tuple(messages))
            self._waiting |= {message.metadata.message_id for message in messages}
            self._changed.notify_all()

    def take(self, message_ids: Sequence[str]) -> list[Message]:
        """Wait for the first reply to any of these messages, and return all there are; none where none is under way.

        Raises:
            RunError: a worker ended, or could not start.
        """
        with phase("wait"), self._changed:
            asked = self._waiting.intersection(message_ids)
            self._changed.wait_for(lambda: self._failure or not asked or asked & self._done.keys())
            if self._failure is not None:
                raise self._failure
            here = asked & self._done.keys()
            self._waiting -= here
            taken = [self._done.pop(each) for each in message_ids if each in here]
            times, self._times = self._times, []
        if self._clock is not None:
            for seconds, elements in times:
                self._clock.add(seconds, elements)
        return taken

    def _serve(self, worker: _Worker) -> None:
        """Hand one message after the other to a worker, until the crew is dismissed."""
        known: deque[int] = deque(maxlen=CACHED_CLIENTS)  # as many as the worker keeps encoded, and these
        try:
            self._tell(worker, "load")
            worker.ready(self._turn)
            self._tell(worker, "idle")
            while (order := self._next(known)) is not None:
                clients = tuple(_client(message) for message in order)
                known.extend(client for client in clients if client not in known)
                self._tell(worker, None)
                before = tuple(self._memories.read(client) for client in clients)
                done = worker.ask(Order(messages=order, clients=clients, memories=before))
                for client, old, new in zip(clients, before, done.memories, strict=True):
                    self._memories.keep(client, old, new)
                self._tell(worker, "idle")
                with self._changed:
                    ids = (message.metadata.message_id for message in order)
                    self._done.update(zip(ids, done.replies, strict=True))
                    self._times.append((done.seconds, done.elements))
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - the boundary: it is raised where the reply is taken
            with self._changed:
                self._failure = self._failure or (error if isinstance(error, FedpeftError | OSError) else _own(error))
                self._changed.notify_all()

    def _tell(self, worker: _Worker, state: str | None) -> None:
        if self._clock is not None:
            self._clock.others.turn(worker.process.pid or 0, state)

    def _next(self, known: Collection[int]) -> tuple[Message, ...] | None:
        """Wait for messages, if there are some to a client whose data the worker has encoded already then for these."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._orders)
            if self._closed:
                return None
            place = next((at for at, order in enumerate(self._orders) if _client(order[0]) in known), 0)
            order = self._orders[place]
            del self._orders[place]
            return order


def _client(message: Message) -> int:
    return message.metadata.dst_node_id - 1


def _own(error: Exception) -> RunError:
    return RunError(f"a worker process gave what cannot be used: {type(error).__name__}: {error}")
