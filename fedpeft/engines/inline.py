"""The default engine: Flower's Grid on this machine; the base model lies in memory once, whatever the workers."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, final

from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp

from fedpeft.config import Experiment
from fedpeft.engines.crew import Crew
from fedpeft.engines.local import Answering, LocalGrid, local_client_app, node_context
from fedpeft.engines.processes import ended_by_sigterm
from fedpeft.engines.sizing import num_workers
from fedpeft.engines.stacking import stacking
from fedpeft.engines.start import ready
from fedpeft.report.watch import Watcher
from fedpeft.rounds.groups import Gathering
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.server import serve
from fedpeft.timing import current
from fedpeft.training.speed import measure

__all__ = ["InlineGrid", "WorkerGrid", "simulate"]


@final
class InlineGrid(LocalGrid):
    """Hands messages, one or a group's, on when a reply is asked for; a node's context is made when first needed."""

    def __init__(
        self,
        app: ClientApp | Answering,
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
        self._gathering = Gathering()
        self._queued: dict[str, Sequence[Message]] = {}
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; nothing runs yet."""
        added = list(messages)
        for message in added:
            group = self._gathering.add(message)
            self._queued.update((each.metadata.message_id, group) for each in group)
        return [message.metadata.message_id for message in added]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer the first asked-for message, with its group; one group's replies are all that is ever held."""
        for message_id in message_ids:
            if (group := self._queued.get(message_id)) is not None:
                for message, reply in zip(group, self._answers(group), strict=True):
                    del self._queued[message.metadata.message_id]
                    self._replies[message.metadata.message_id] = reply
            if (found := self._replies.pop(message_id, None)) is not None:
                return [found]
        return []

    def _answers(self, group: Sequence[Message]) -> list[Message]:
        """Answer messages; what clients keep is on the disk before their replies are taken."""
        asked = [(message, self._context(message.metadata.dst_node_id)) for message in group]
        with ExitStack() as stack:
            for message, context in asked:
                if self._memories is not None and message.metadata.message_type in ("train", "evaluate"):
                    stack.enter_context(self._memories.lent(int(context.node_config["partition-id"]), context.state))
            return self._app(asked) if isinstance(self._app, Answering) else [self._app(*asked[0])]

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
        self._gathering = Gathering()
        self._queued: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; workers that are idle begin."""
        added = {message.metadata.message_id: message for message in messages}
        for message_id, message in added.items():
            if message.metadata.message_type in ("train", "evaluate"):
                if group := self._gathering.add(message):
                    self._crew.give(group)
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
    bench, run, resume = ready(experiment, stacks=True)
    if (clock := current()) is not None:
        clock.speed = measure(bench)
    workers = num_workers(experiment, num_clients=bench.shares.num_clients)
    memories = MemoryFolder(path=run.clients, checkpoint_every=experiment.rounds.checkpoint_every)
    num_clients = bench.shares.num_clients
    drawn = experiment.rounds.clients_per_round or num_clients
    served = partial(
        serve,
        bench=bench,
        run=run,
        resume=resume,
        memories=memories,
        watcher=watcher,
        stack=stacking(bench, run, drawn=drawn, workers=workers, resume=resume),
    )
    if workers == 1:
        return served(InlineGrid(Answering(bench), num_clients=num_clients, memories=memories))
    with ended_by_sigterm(), Crew(bench, workers, memories) as crew:
        return served(WorkerGrid(local_client_app(bench), crew, num_clients=num_clients), workers=workers)
