"""One question at a time, on one thread; what a client keeps is committed when its reply is made, or not at all."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import final

from flwr.app import Context, Message, RecordDict

from fedpeft.trainer.message import Question
from fedpeft.trainer.states import States
from fedpeft.wire.record import record_of, server_message

__all__ = ["AbandonedError", "Answering", "Call", "Worker"]

_LOG = logging.getLogger(__name__)
_KEEP_REPLIES = 4

Answering = Callable[[Question, Message, Context, "Call"], Message]
"""What answers a message as the client app does; it looks at the call now and then."""


class AbandonedError(BaseException):
    """Nobody waits for the reply any more. No Exception: it is the end of a call and no client's failure."""


@final
class Call:
    """Whether somebody still waits for a reply."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._future: Future[Message] | None = None

    def end(self) -> None:
        """Give the call up; a question that still waits for its turn loses it."""
        self._over.set()
        if self._future is not None:
            self._future.cancel()

    def require(self) -> None:
        """Go on only for somebody who waits.

        Raises:
            AbandonedError: nobody does.
        """
        if self._over.is_set():
            raise AbandonedError

    def wait_for(self, future: "Future[Message]") -> Message:
        """Return the reply.

        Raises:
            AbandonedError: the call ended first.
        """
        self._future = future
        if self._over.is_set():
            future.cancel()
        try:
            return future.result()
        except CancelledError as error:
            raise AbandonedError from error


@final
class Worker:
    """All computing is done on one thread: torch keeps its number of threads, and so its bits, by thread."""

    def __init__(self, answering: Answering, states: States) -> None:
        self._answering = answering
        self._states = states
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fedpeft-trainer")
        self._replies: OrderedDict[bytes, tuple[int, int, Message]] = OrderedDict()

    def submit(self, work: Callable[[], None]) -> "Future[None]":
        """Do something else in turn."""
        return self._thread.submit(work)

    def ask(self, question: Question, key: bytes, call: Call) -> Message:
        """Return the reply; a question that was answered lately, known by its key, has the same one.

        Raises:
            AbandonedError: the call ended first; what the client keeps is as it was.
            OSError: what it keeps could not be written.
        """
        return call.wait_for(self._thread.submit(self._answered, question, key, call))

    def close(self) -> None:
        """Wait for the question under way, and take no more."""
        self._thread.shutdown(cancel_futures=True)

    def _answered(self, question: Question, key: bytes, call: Call) -> Message:
        call.require()
        began, known = time.monotonic(), self._replies.get(key)
        reply = known[2] if known else self._work(question, call)
        if reply.has_content() and question.message_type != "query.join":
            self._replies[key] = (question.run, question.client, reply)
            self._replies.move_to_end(key)
        while len(self._replies) > _KEEP_REPLIES:
            self._replies.popitem(last=False)
        _LOG.info(
            "answered type=%s run=%d client=%d bytes_in=%d failed=%s repeated=%s seconds=%.3f",
            question.message_type,
            question.run,
            question.client,
            len(question.content.body),
            reply.has_error(),
            known is not None,
            time.monotonic() - began,
        )
        return reply

    def _work(self, question: Question, call: Call) -> Message:
        """Answer, then commit what the client keeps; up to there a call that ends changes nothing."""
        run, client, joins = question.run, question.client, question.message_type == "query.join"
        record = RecordDict() if joins else self._states.of(run, client)
        context = Context(
            run_id=run,
            node_id=question.node,
            node_config=question.node_config,
            state=record,
            run_config=question.run_config,
        )
        # What it says of time and place concerns the node alone.
        message = server_message(
            record_of(question.content), message_type=question.message_type, run=run, node=question.node
        )
        if not joins:
            with self._states.lent(run, client, record):
                reply = self._answering(question, message, context, call)
                call.require()
            return reply
        reply = self._answering(question, message, context, call)
        call.require()
        if reply.has_content():
            self._states.join(run, client, record)
            self._forget(run, client)
        return reply

    def _forget(self, run: int, client: int) -> None:
        """Drop replies that were made from what the client kept before it joined again."""
        for key in [key for key, known in self._replies.items() if known[:2] == (run, client)]:
            del self._replies[key]
