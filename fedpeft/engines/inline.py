"""The default engine: Flower's Grid inside one process; the base model is loaded once."""

import itertools
import time
from collections.abc import Iterable
from typing import Any, final

from flwr.app import DEFAULT_TTL, Context, Message, Metadata, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedpeft.adapters.plan import Plan
from fedpeft.client import Node, client_app
from fedpeft.config import Experiment
from fedpeft.engines.start import ready
from fedpeft.errors import WireError
from fedpeft.report.watch import Watcher
from fedpeft.rounds.memory_folder import MemoryFolder
from fedpeft.server import serve
from fedpeft.training.workbench import Workbench

__all__ = ["InlineGrid", "local_client_app", "simulate"]

_SERVER_NODE = 0
_RUN = 1


@final
class InlineGrid(Grid):
    """Hands each message to the client app when its reply is asked for; a node's context is made when first needed."""

    def __init__(
        self,
        app: ClientApp,
        *,
        num_clients: int,
        run_config: UserConfig | None = None,
        memories: MemoryFolder | None = None,
    ) -> None:
        self._app = app
        self._num_clients = num_clients
        self._run_config = run_config or {}
        self._memories = memories
        self._contexts: dict[int, Context] = {}
        self._queued: dict[str, Message] = {}
        self._ids = itertools.count(1)
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        """Keep Flower's description of the run; the engine itself does not read it."""
        self._run = run

    @property
    def run(self) -> Any:
        """What set_run was given."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message with an id of its own."""
        metadata = Metadata(
            run_id=_RUN,
            message_id=f"inline-{next(self._ids)}",
            src_node_id=_SERVER_NODE,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or DEFAULT_TTL,
            message_type=message_type,
        )
        message: Message = Message(content, metadata=metadata)  # type: ignore[call-overload]
        return message

    def get_node_ids(self) -> Iterable[int]:
        """Return one node a client: node 1 holds client 0."""
        return range(1, self._num_clients + 1)

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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull; nothing is ever late in one process."""
        return [reply for message_id in self.push_messages(messages) for reply in self.pull_messages([message_id])]

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            self._contexts[node] = Context(
                run_id=_RUN,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": self._num_clients},
                state=RecordDict(),
                run_config=self._run_config,
            )
        return self._contexts[node]


def simulate(experiment: Experiment, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Run one experiment in this process and return its summary.

    Raises:
        InputError: something is wrong with the experiment; nothing has been written.
        RunError: the run failed after it began; its checkpoint stands.
    """
    bench, run, resume = ready(experiment)
    memories = MemoryFolder(path=run.clients, checkpoint_every=experiment.rounds.checkpoint_every)
    grid = InlineGrid(local_client_app(bench), num_clients=bench.shares.num_clients, memories=memories)
    return serve(grid, bench, run, resume=resume, memories=memories, watcher=watcher)


def local_client_app(bench: Workbench) -> ClientApp:
    """Return the client app of a process that already holds all parts: server and clients share them."""

    def workbench(_: Context, plan: bytes) -> Workbench:
        if Plan.from_bytes(plan).hash != bench.adapted.plan.hash:
            raise WireError("the plan handed out is not the one this process holds")
        return bench

    return client_app(Node(experiment=lambda _: bench.experiment, workbench=workbench))
