"""The default engine: Flower's Grid on this machine; the base model lies in memory once, whatever the workers."""

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, final

from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp

from fedpeft.config import Experiment
from fedpeft.engines.crew import Crew
from fedpeft.engines.local import LocalGrid, LocalNodes, enrolled_context, local_client_app, node_context
from fedpeft.engines.processes import ended_by_sigterm
from fedpeft.engines.sizing import num_workers
from fedpeft.engines.start import ready, settled
from fedpeft.report.watch import Watcher
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.server import serve
from fedpeft.timing import current, phase
from fedpeft.training.speed import measure

__all__ = ["InlineGrid", "WorkerGrid", "simulate"]


@final
class InlineGrid(LocalGrid):
    """Hands each message to the client app when its reply is asked for, in the context that ``contexts`` makes."""

    def __init__(
        self,
        app: ClientApp,
        *,
        num_clients: int,
        run_config: UserConfig | None = None,
        memories: MemoryFolder | None = None,
        contexts: Callable[[int], Context] | None = None,
    ) -> None:
        """``contexts`` makes one for each message, of nodes that hold the plan already; else they are kept here."""
        super().__init__(num_clients=num_clients)
        self._app = app
        self._memories = memories
        self._contexts = contexts or cache(
            partial(node_context, num_clients=num_clients, run_config=run_config)  # what nodes keep, this grid keeps
        )
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
                return [self._answer(message, self._contexts(message.metadata.dst_node_id - 1))]
        return []

    def _answer(self, message: Message, context: Context) -> Message:
        """Run a message; what the client keeps is on the disk before its reply is taken."""
        if self._memories is None or message.metadata.message_type not in ("train", "evaluate"):
            return self._app(message, context)
        with self._memories.lent(int(context.node_config["partition-id"]), context.state):
            return self._app(message, context)


@final
class WorkerGrid(LocalGrid):
    """Hands training and evaluation to worker processes at once; their nodes hold the plan already."""

    def __init__(self, crew: Crew, *, num_clients: int) -> None:
        super().__init__(num_clients=num_clients)
        self._crew = crew

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; workers that are idle begin."""
        added = {message.metadata.message_id: message for message in messages}
        for message in added.values():
            self._crew.give(message, client=message.metadata.dst_node_id - 1)
        return list(added)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for the first reply to any of these, and return all there are.

        Raises:
            RunError: a worker process ended.
        """
        return self._crew.take(list(message_ids))


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
        with phase("load"):
            clock.speed = measure(bench)
    workers = num_workers(experiment, num_clients=bench.shares.num_clients)
    memories = MemoryFolder(path=run.clients, checkpoint_every=experiment.rounds.checkpoint_every)
    nodes = LocalNodes(bench.shares.num_clients)
    served = partial(serve, bench=bench, run=run, resume=resume, memories=memories, watcher=watcher, nodes=nodes)
    if workers == 1:
        contexts = partial(enrolled_context, bench=bench, plan=bench.adapted.plan.to_bytes())
        app = local_client_app(bench)
        return served(InlineGrid(app, num_clients=len(nodes), memories=memories, contexts=contexts))
    with ended_by_sigterm(), Crew(bench, workers, memories) as crew:
        return served(WorkerGrid(crew, num_clients=len(nodes)), workers=workers)
