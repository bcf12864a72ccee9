"""The default engine: Flower's Grid on this machine; the base model lies in memory once, whatever the workers."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, final

from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp

from fedpeft.config import Experiment
from fedpeft.engines.crew import Crew
from fedpeft.engines.forking import begin
from fedpeft.engines.local import Answering, LocalGrid, LocalNodes, enrolled_context, node_context
from fedpeft.engines.processes import ended_by_sigterm
from fedpeft.engines.sizing import num_workers
from fedpeft.engines.stacking import stacking
from fedpeft.engines.start import ready, settled
from fedpeft.report.watch import Watcher
from fedpeft.rounds.groups import Gathering
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.server import serve
from fedpeft.timing import current, phase
from fedpeft.training.speed import measure

__all__ = ["InlineGrid", "WorkerGrid", "simulate"]


@final
class InlineGrid(LocalGrid):
    """Hands messages, one or a group's, on when a reply is asked for, in the contexts that ``contexts`` makes."""

    def __init__(
        self,
        app: ClientApp | Answering,
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
        asked = [(message, self._contexts(message.metadata.dst_node_id - 1)) for message in group]
        with ExitStack() as stack:
            for message, context in asked:
                if self._memories is not None and message.metadata.message_type in ("train", "evaluate"):
                    stack.enter_context(self._memories.lent(int(context.node_config["partition-id"]), context.state))
            return self._app(asked) if isinstance(self._app, Answering) else [self._app(*asked[0])]


@final
class WorkerGrid(LocalGrid):
    """Hands training and evaluation to worker processes at once; their nodes hold the plan already."""

    def __init__(self, crew: Crew, *, num_clients: int) -> None:
        super().__init__(num_clients=num_clients)
        self._crew = crew
        self._gathering = Gathering()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; workers that are idle begin."""
        added = {message.metadata.message_id: message for message in messages}
        for message in added.values():
            if group := self._gathering.add(message):
                self._crew.give(group)
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
    with ended_by_sigterm():  # what lies in temporary folders goes then too
        return _simulated(settled(experiment), watcher)


def _simulated(experiment: Experiment, watcher: Watcher | None) -> dict[str, Any]:
    begin(experiment.simulation, experiment.compute)
    bench, run, resume = ready(experiment, stacks=True)
    if (clock := current()) is not None:
        with phase("load"):
            clock.speed = measure(bench)
    workers = num_workers(experiment, num_clients=bench.shares.num_clients)
    memories = MemoryFolder(path=run.clients, checkpoint_every=experiment.rounds.checkpoint_every)
    nodes = LocalNodes(bench.shares.num_clients)
    drawn = experiment.rounds.clients_per_round or len(nodes)
    stack = stacking(bench, run, drawn=drawn, workers=workers, resume=resume)
    served = partial(serve, bench=bench, run=run, resume=resume, memories=memories, watcher=watcher, nodes=nodes)
    if workers == 1:
        contexts = partial(enrolled_context, bench=bench, plan=bench.adapted.plan.to_bytes())
        grid = InlineGrid(Answering(bench), num_clients=len(nodes), memories=memories, contexts=contexts)
        return served(grid, stack=stack)
    with Crew(bench, workers, memories) as crew:
        return served(WorkerGrid(crew, num_clients=len(nodes)), workers=workers, stack=stack)
