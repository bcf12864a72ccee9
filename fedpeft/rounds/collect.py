"""Send a round's messages and take the replies in client order, whatever order they arrive in.

At most ``window`` messages are under way and at most ``window`` replies wait their turn, so the server's memory does
not grow with the cohort, and the strategy's sums are bitwise the same on every engine. A slow client at the head holds
up neither the sending nor, within these bounds, the fetching of others.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import final

from flwr.app import Error, Message
from flwr.serverapp import Grid

__all__ = ["in_order"]

_SHORTEST_SECONDS = 0.02
_LONGEST_SECONDS = 1.0
_UNSENT = "not sent: "
_NOT_SENT = 1001
"""Flower error code of a message that its grid did not take."""


def in_order(
    grid: Grid,
    outgoing: Iterable[tuple[int, Message]],
    *,
    window: int,
    timeout: float,
    longest: float = math.inf,
    arrived: Callable[[int, Message], Message | None] = lambda *_: None,
) -> Iterator[tuple[int, Message | None]]:
    """Yield (client, reply) in the order of ``outgoing``; None stands for a reply that did not come in time.

    A message that the grid does not take is answered with an error at once. A reply is asked for until its message has
    timed out, and never after. ``timeout`` is of each message from when it is sent, ``longest`` of all of them from
    now; what is still to be sent then never is. ``arrived`` looks at each reply when it comes, before its turn, and may
    have another message sent in the place of the first, whose time is not prolonged and whose reply is not taken.
    """
    ends = time.monotonic() + longest
    queue = _Queue(grid=grid, source=iter(outgoing), window=window, timeout=timeout, ends=ends, told=arrived)
    pause = _SHORTEST_SECONDS
    while queue.send():
        fetched = queue.fetch()
        if due := queue.head_is_due():
            yield queue.pop()
        if due or fetched:
            pause = _SHORTEST_SECONDS
        else:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_SECONDS)


@final
@dataclass(kw_only=True)
class _Queue:
    """Messages in the order they were sent: under way, or answered and waiting their turn."""

    grid: Grid
    source: Iterator[tuple[int, Message]]
    window: int
    timeout: float
    ends: float
    """When all is over, by the monotonic clock."""
    told: Callable[[int, Message], Message | None]
    """Looks at each reply."""
    sent: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Message id -> client and deadline, in order."""
    replies: dict[str, Message] = field(default_factory=dict)

    def send(self) -> bool:
        """Send while there is room for one more under way; False when all is done."""
        while len(self.sent) - len(self.replies) < self.window and len(self.replies) < self.window:
            if (following := next(self.source, None)) is None:
                break
            self._push(*following)
        return bool(self.sent)

    def _push(self, client: int, message: Message) -> None:
        if (now := time.monotonic()) >= self.ends:
            self.sent[f"{_UNSENT}{client}"] = (client, -math.inf)
            return
        taken = next(iter(self.grid.push_messages([message])), None)
        message_id = taken or f"{_UNSENT}{client}"
        self.sent[message_id] = (client, min(now + self.timeout, self.ends))
        if taken is None:
            reason = f"Flower did not take the message; node {message.metadata.dst_node_id} may be gone"
            self.replies[message_id] = Message(Error(_NOT_SENT, reason), reply_to=message)

    def fetch(self) -> bool:
        """Ask for the first replies that are missing, for no more than may be held; True when one came."""
        missing = [
            message_id for message_id in self.sent if not (message_id in self.replies or message_id.startswith(_UNSENT))
        ]
        asked = missing[: max(1, self.window - len(self.replies))]
        arrived = False
        for reply in self.grid.pull_messages(asked) if asked else ():
            if (message_id := reply.metadata.reply_to_message_id) in asked and message_id not in self.replies:
                fresh = self.told(self.sent[message_id][0], reply)
                if fresh is None or not self._sent_again(message_id, fresh):
                    self.replies[message_id] = reply
                arrived = True
        return arrived

    def _sent_again(self, message_id: str, fresh: Message) -> bool:
        """Put a message in another one's place; False where the grid does not take it."""
        if (taken := next(iter(self.grid.push_messages([fresh])), None)) is None:
            return False
        self.sent = {taken if name == message_id else name: kept for name, kept in self.sent.items()}
        return True

    def head_is_due(self) -> bool:
        """Tell whether the first message is answered or too late."""
        return self._head() in self.replies or time.monotonic() > self.sent[self._head()][1]

    def pop(self) -> tuple[int, Message | None]:
        """Take the first message off, with its reply if there is one."""
        head = self._head()
        return self.sent.pop(head)[0], self.replies.pop(head, None)

    def _head(self) -> str:
        return next(iter(self.sent))
