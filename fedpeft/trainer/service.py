"""The gRPC service: streams in and out, deadlines and cancellation, health; no word of an unforeseen error leaves."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedpeft.errors import InputError, WireError
from fedpeft.trainer.address import Address
from fedpeft.trainer.message import MAX_BODY, answer_parts, read_ask
from fedpeft.trainer.protocol import OPTIONS, SERVICE
from fedpeft.trainer.worker import AbandonedError, Call, Worker
from fedpeft.wire.pb.v1 import trainer_pb2 as pb

__all__ = ["SEATS", "serving"]

_LOG = logging.getLogger(__name__)
SEATS = 8
"""Questions that may be under way or wait; a further one is turned away at once."""
_OTHERS = 4
"""Threads beside theirs, for questions of health."""
_GRACE_SECONDS = 5.0
"""For what is under way when the trainer is told to stop."""


@contextmanager
def serving(
    address: Address, worker: Worker, *, limit: int = MAX_BODY, grace: float = _GRACE_SECONDS
) -> Iterator[Callable[[], None]]:
    """Listen while the block runs; yield what tells those who ask after its health that the trainer is ready.

    ``limit`` is the most bytes that a question's body may have, ``grace`` how many seconds what is under way has at
    the end.

    Raises:
        InputError: the address cannot be listened on.
    """
    state = health.HealthServicer()
    names = ("", SERVICE)
    for name in names:
        state.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(SEATS + _OTHERS), options=OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    server.add_generic_rpc_handlers((_handler(worker, limit),))
    _listen(server, address)
    server.start()

    def ready() -> None:
        for name in names:
            state.set(name, health_pb2.HealthCheckResponse.SERVING)

    try:
        yield ready
    finally:
        state.enter_graceful_shutdown()
        server.stop(grace).wait()
        address.release()


def _listen(server: grpc.Server, address: Address) -> None:
    address.prepare()
    try:
        bound = server.add_insecure_port(address.target)
    except RuntimeError as error:
        raise InputError(f"{address}: cannot be listened on: {error}; name another address") from error
    if not bound:
        raise InputError(f"{address}: cannot be listened on; name another address")
    address.protect()


def _handler(worker: Worker, limit: int) -> grpc.GenericRpcHandler:
    seats = threading.BoundedSemaphore(SEATS)

    def answer(parts: Iterator[pb.AskPart], context: grpc.ServicerContext) -> Iterator[pb.AnswerPart]:
        if not seats.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{SEATS} questions wait already")
        try:
            yield from _answered(worker, parts, context, limit)
        finally:
            seats.release()

    method = grpc.stream_stream_rpc_method_handler(
        answer, request_deserializer=pb.AskPart.FromString, response_serializer=pb.AnswerPart.SerializeToString
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Answer": method})


def _answered(
    worker: Worker, parts: Iterator[pb.AskPart], context: grpc.ServicerContext, limit: int
) -> Iterator[pb.AnswerPart]:
    """Yield the reply, or end the call with a status; gRPC itself would tell the words of any exception."""
    call = Call()
    if not context.add_callback(call.end):
        call.end()
    try:
        question, key = read_ask(parts, limit=limit)
        reply = worker.ask(question, key, call)
    except WireError as error:
        code, words = grpc.StatusCode.INVALID_ARGUMENT, str(error)
    except (AbandonedError, grpc.RpcError):
        _LOG.warning("a question was given up by who asked it; nothing was kept of it")
        code, words = grpc.StatusCode.CANCELLED, "given up"
    except Exception:  # noqa: BLE001 - the boundary: gRPC would tell its words
        _LOG.exception("a question could not be answered")
        code, words = grpc.StatusCode.INTERNAL, "the trainer failed; its own log says why"
    else:
        yield from answer_parts(reply)
        return
    context.abort(code, words)
