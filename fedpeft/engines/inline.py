"""The default engine: Flower's Grid on this machine; the base model lies in memory once, whatever the workers."""

from collections.abc import Iterable
from typing import Any, final

from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp

from fedpeft.config import Experiment
from fedpeft.engines.crew import Crew
from fedpeft.engines.local import LocalGrid, local_client_app, node_context
from fedpeft.engines.processes import ended_by_sigterm
from fedpeft.engines.sizing import num_workers
from fedpeft.engines.start import ready, settled
from fedpeft.report.watch import Watcher
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.server import serve
from fedpeft.timing import current
from fedpeft.training.speed import measure

__all__ = ["InlineGrid", "WorkerGrid", "simulate"]


@final
class InlineGrid(LocalGrid):
    """Hands each message to the client app when its reply is asked for; a node's context is made when first needed."""

    def __init__(
        self,
        app: ClientApp,
        *,
        num_clients: int,
        run_config: UserConfig | None = None,
        memories: MemoryFolder | None = None,
    ) -> None:
        super().__init__(num_clients=num_clients)
        self._app = app
        self._run_config = run_config or {}
        self._memories = memories
        self._contexts: dict[int, Context] = {}
        self._queued: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; nothing runs yet."""
        added = {message.metadata.message_id: message for message in messages}
        self._queued.update(added)
        return list(added)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the first asked-for message through the client app; one reply at a time is all that is ever held."""
        for message_id in message_ids:
            if (message := self._queued.pop(message_id, None)) is not None:
                return [self._answer(message, self._context(message.metadata.dst_node_id))]
        return []

    def _answer(self, message: Message, context: Context) -> Message:
        """Run a message; what the client keeps is on the disk before its reply is taken."""
        if self._memories is None or message.metadata.message_type not in ("train", "evaluate"):
            return self._app(message, context)
        with self._memories.lent(int(context.node_config["partition-id"]), context.state):
            return self._app(message, context)

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            self._contexts[node] = node_context(node - 1, num_clients=self._num_clients, run_config=self._run_config)
        return self._contexts[node]


@final
class WorkerGrid(LocalGrid):
    """Hands training and evaluation to worker processes at once, and answers the handshake itself."""

    def __init__(self, app: ClientApp, crew: Crew, *, num_clients: int) -> None:
        super().__init__(num_clients=num_clients)
        self._app = app
        self._crew = crew
        self._queued: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; workers that are idle begin."""
        added = {message.metadata.message_id: message for message in messages}
        for message_id, message in added.items():
            if message.metadata.message_type in ("train", "evaluate"):
                self._crew.give(message, client=message.metadata.dst_node_id - 1)
            else:
                self._queued[message_id] = message
        return list(added)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for the first reply to any of these, and return all there are.

        Raises:
            RunError: a worker process ended.
        """
        asked = list(message_ids)
        here = [message for message_id in asked if (message := self._queued.pop(message_id, None)) is not None]
        return [self._joined(message) for message in here] or self._crew.take(asked)

    def _joined(self, message: Message) -> Message:
        return self._app(message, node_context(message.metadata.dst_node_id - 1, num_clients=self._num_clients))


def simulate(experiment: Experiment, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Run one experiment on this machine and return its summary.

    With ``simulation.workers`` above 1 a script must guard its entry (``if __name__ == "__main__":``), as Python asks
    of everyone who starts processes.

    Raises:
        InputError: something is wrong with the experiment; nothing has been written.
        RunError: the run failed after it began, or a worker process ended; the last checkpoint stands.
    """
    experiment = settled(experiment)
    bench, run, resume = ready(experiment)
    if (clock := current()) is not None:
        clock.speed = measure(bench)
    workers = num_workers(experiment, num_clients=bench.shares.num_clients)
    memories = MemoryFolder(path=run.clients, checkpoint_every=experiment.rounds.checkpoint_every)
    app, num_clients = local_client_app(bench), bench.shares.num_clients
    if workers == 1:
        grid = InlineGrid(app, num_clients=num_clients, memories=memories)
        return serve(grid, bench, run, resume=resume, memories=memories, watcher=watcher)
    with ended_by_sigterm(), Crew(bench, workers, memories) as crew:
        grid_of_workers = WorkerGrid(app, crew, num_clients=num_clients)
        return serve(grid_of_workers, bench, run, resume=resume, memories=memories, watcher=watcher, workers=workers)
