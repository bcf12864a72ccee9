"""The app's side: a Flower message goes to the trainer, its answer is the reply. No torch and no model is imported."""

import logging
import time
from pathlib import Path
from typing import cast

import grpc
from flwr.app import Context, Error, Message, RecordDict

from fedpeft.errors import ConfigError, FedpeftError, RunError
from fedpeft.trainer.address import Address, parse
from fedpeft.trainer.message import Question, ask_parts, read_answer
from fedpeft.trainer.protocol import METHOD, OPTIONS
from fedpeft.wire.failure import failure, tells
from fedpeft.wire.pb.v1 import trainer_pb2 as pb
from fedpeft.wire.record import content_of

__all__ = ["forward"]

_LOG = logging.getLogger("flwr.fedpeft")
"""Below Flower's own logger, so that it comes out in the log of the process that Flower started."""


def forward(trainer: str, message: Message, context: Context, *, folder: Path) -> Message:
    """Return what the trainer at an address answers; what goes wrong on the way is a coded error.

    The experiment's file is looked for in the folder, and its text goes along.
    """
    try:
        address = parse(trainer)
        reply = _asked(address, _question(message, context, folder), _seconds_left(message))
    except (FedpeftError, OSError) as error:
        reply = failure(error, _LOG, who="the way to the trainer", words=tells())
    return Message(reply, reply_to=message)


def _question(message: Message, context: Context, folder: Path) -> Question:
    return Question(
        message_type=message.metadata.message_type,
        run=context.run_id,
        node=context.node_id,
        node_config=context.node_config,
        run_config=context.run_config,
        experiment=_text(folder / str(context.run_config.get("experiment", ""))),
        content=content_of(message.content),
    )


def _text(path: Path) -> str | None:
    """Return what the trainer may not need: one that was given an experiment takes no other."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _seconds_left(message: Message) -> float:
    """Return how long the server still waits for the reply.

    Raises:
        RunError: no longer.
    """
    left = message.metadata.created_at + message.metadata.ttl - time.time()
    if left <= 0:
        raise RunError(f"the message came {-left:.0f} s after its time; is this machine's clock right?")
    return left


def _asked(address: Address, question: Question, seconds: float) -> RecordDict | Error:
    """Ask, and wait as long as the server does.

    Raises:
        InputError: others can reach the socket.
        RunError: no answer; names the address, the reason and the remedy.
    """
    try:
        address.require_private()
    except FileNotFoundError as error:
        raise _unreachable(address, "there is no such socket") from error
    with grpc.insecure_channel(address.target, options=OPTIONS) as channel:
        method = channel.stream_stream(
            METHOD, request_serializer=pb.AskPart.SerializeToString, response_deserializer=pb.AnswerPart.FromString
        )
        try:
            return read_answer(method(ask_parts(question), timeout=seconds))
        except grpc.RpcError as error:
            raise _failed(address, cast(grpc.Call, error), seconds) from error


def _failed(address: Address, status: grpc.Call, seconds: float) -> RunError:
    code, details = status.code(), status.details()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return _unreachable(address, str(details))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return RunError(
            f"trainer {address}: no answer within the {seconds:.0f} s that the server waits; it may be busy for "
            "another run: see its log, or raise rounds.timeout_seconds"
        )
    return RunError(f"trainer {address}: {code.name.lower()}: {details}")


def _unreachable(address: Address, reason: str) -> RunError:
    return RunError(
        f"trainer {address}: cannot be reached, or went away ({reason}); start it with 'fedpeft trainer --listen "
        f"{address} --state DIR', or leave trainer out of the node config to train in Flower's process"
    )
