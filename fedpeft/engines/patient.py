"""A grid whose pulls never hold up a round: each message is asked for on a thread of its own.

Flower pulls a reply's parts within one call and waits for each, so a client that announces a reply and never sends it
keeps every other reply of that call, and the round's deadline, waiting. A reply that Flower cannot put together, or
that would take too much memory, is one client's failure too.
"""

import logging
import queue
import threading
from collections.abc import Iterable
from typing import Any, final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.engines.inflating import counted
from fedpeft.wire.record import DamagedError, damaged

__all__ = ["PatientGrid"]

_LOG = logging.getLogger("flwr.fedpeft")
_DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError),
    DamagedError,
)
"""What is raised while bytes that a client chose are put together; what fails on the way to the server is none."""


@final
class PatientGrid(Grid):
    """Asks another grid, and returns at once with what has come; what never comes costs a thread and nothing else."""

    def __init__(self, grid: Grid, *, most: int = 1 << 31) -> None:
        """Take a grid, and how many bytes one reply may take while it is put together."""
        self._grid = grid
        self._most = most
        self._under_way: set[str] = set()
        self._come: queue.SimpleQueue[tuple[str, list[Message] | Exception]] = queue.SimpleQueue()

    def set_run(self, run: Any) -> None:
        """Pass on Flower's description of the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Flower's description of the run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are there."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come to these; what fails in a thread is raised here."""
        asked = list(message_ids)
        found: list[Message] = []
        while not self._come.empty():
            message_id, replies = self._come.get()
            self._under_way.discard(message_id)
            if isinstance(replies, Exception):
                raise replies
            found += [reply for reply in replies if message_id in asked]
        came = {reply.metadata.reply_to_message_id for reply in found}
        for message_id in asked:
            if message_id not in came and message_id not in self._under_way:
                self._under_way.add(message_id)
                threading.Thread(target=self._pull, args=(message_id,), daemon=True, name="fedpeft-pull").start()
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Ask the grid itself."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _pull(self, message_id: str) -> None:
        try:
            with counted(self._most):
                replies = list(self._grid.pull_messages([message_id]))
            self._come.put((message_id, replies))
        except _DAMAGE as error:
            _LOG.warning("a reply could not be put together", exc_info=error)
            self._come.put((message_id, [damaged(message_id)]))
        except Exception as error:  # noqa: BLE001 - carried to the thread that waits
            self._come.put((message_id, error))
