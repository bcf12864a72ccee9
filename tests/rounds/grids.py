"""A Grid whose replies come when a test says so."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.engines.inline import InlineGrid


def message(client: int) -> Message:
    """Return a message to the node of a client."""
    grid = InlineGrid(lambda sent, _: sent, num_clients=client + 1)
    return grid.create_message(RecordDict({"to": ConfigRecord({"client": client})}), "train", client + 1, "1")


def reply_to(sent: Message) -> Message:
    """Return a reply that says whom it is from."""
    record = RecordDict({"from": ConfigRecord({"client": sent.metadata.dst_node_id - 1})})
    return Message(record, reply_to=sent)


class FakeGrid(Grid):
    """Answers at each pull what ``arrivals`` picks out of the messages under way."""

    def __init__(self, arrivals: Callable[[list[Message]], Iterable[Message]], *, nodes: Iterable[int] = ()) -> None:
        self.arrivals = arrivals
        self.nodes = list(nodes)
        self.under_way: dict[str, Message] = {}
        self.most_under_way = 0
        self.pushed: list[int] = []
        self.asked: list[list[str]] = []
        self._made = InlineGrid(lambda sent, _: sent, num_clients=1)

    def set_run(self, run: Any) -> None:
        """Flower describes the run; no test needs it."""

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        return self._made.create_message(*arguments, **options)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for sent in messages:
            identity = f"id-{sent.metadata.dst_node_id}"
            sent.metadata.__dict__["_message_id"] = identity
            self.under_way[identity] = sent
            self.pushed.append(sent.metadata.dst_node_id - 1)
            ids.append(identity)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        self.asked.append(asked)
        arrived = list(self.arrivals([self.under_way[name] for name in asked if name in self.under_way]))
        for reply in arrived:
            self.under_way.pop(reply.metadata.reply_to_message_id, None)
        return arrived

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError
