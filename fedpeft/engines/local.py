"""Flower's Grid without a network, and the client app of a process that holds all parts."""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedpeft.client import Node, client_app
from fedpeft.cohort import train_together
from fedpeft.errors import WireError
from fedpeft.handshake import enrol
from fedpeft.rounds.roster import job_name
from fedpeft.training.workbench import Workbench
from fedpeft.wire.record import server_message

__all__ = ["Answering", "LocalGrid", "LocalNodes", "enrolled_context", "local_client_app", "node_context"]

_RUN = 1


@final
@dataclass(frozen=True)
class LocalNodes(Mapping[int, int]):
    """Client -> node, for any number of clients: known without asking, and in no memory."""

    num_clients: int

    def __getitem__(self, client: int) -> int:
        if not 0 <= client < self.num_clients:
            raise KeyError(client)
        return client + 1

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.num_clients))

    def __len__(self) -> int:
        return self.num_clients


class LocalGrid(Grid):
    """Messages have ids of their own, node 1 holds client 0, and nothing is ever late."""

    def __init__(self, *, num_clients: int) -> None:
        self._num_clients = num_clients
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
        return server_message(
            content,
            message_type=message_type,
            run=_RUN,
            node=dst_node_id,
            message_id=f"inline-{next(self._ids)}",
            group=group_id,
            ttl=ttl,
        )

    def get_node_ids(self) -> Iterable[int]:
        """Return one node a client."""
        return range(1, self._num_clients + 1)

    @abstractmethod
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages and return their ids."""

    @abstractmethod
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return at least one reply to the asked-for messages, if any of them is not answered yet."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull."""
        return [reply for message_id in self.push_messages(messages) for reply in self.pull_messages([message_id])]


def node_context(client: int, *, num_clients: int, run_config: UserConfig | None = None) -> Context:
    """Return the empty context of a client's node."""
    return Context(
        run_id=_RUN,
        node_id=client + 1,
        node_config={"partition-id": client, "num-partitions": num_clients},
        state=RecordDict(),
        run_config=run_config or {},
    )


def enrolled_context(client: int, bench: Workbench, plan: bytes) -> Context:
    """Return the context of a client's node that holds the plan; one is made for each message and then forgotten."""
    context = node_context(client, num_clients=bench.shares.num_clients)
    enrol(context.state, job_name(bench), plan)
    return context


def local_client_app(bench: Workbench) -> ClientApp:
    """Return the client app of a process that already holds all parts: server and clients share them."""
    return client_app(_node(bench))


@final
class Answering:
    """What answers the messages of a process that holds all parts, one alone or several of a group together."""

    def __init__(self, bench: Workbench, app: ClientApp | None = None) -> None:
        self._bench, self._node = bench, _node(bench)
        self._app = app or client_app(self._node)

    def __call__(self, asked: Sequence[tuple[Message, Context]]) -> list[Message]:
        """Return a reply to each."""
        if len(asked) == 1:
            return [self._app(*asked[0])]
        return train_together(asked, self._bench, self._node)


def _node(bench: Workbench) -> Node:
    own = bench.adapted.plan.to_bytes()

    def workbench(_: Context, plan: bytes) -> Workbench:
        if plan != own:
            raise WireError("the plan handed out is not the one this process holds")
        return bench

    return Node(experiment=lambda _: bench.experiment, workbench=workbench, tells=True)
