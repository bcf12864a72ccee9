"""A question to the trainer and its answer, as protobuf parts and back; reading is strict and bounded."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

from flwr.app import Error, Message, RecordDict, UserConfig

from fedpeft.errors import WireError
from fedpeft.wire.pb.v1 import trainer_pb2 as pb
from fedpeft.wire.record import Content, content_of, record_of

__all__ = ["MAX_BODY", "TYPES", "VERSION", "Question", "answer_parts", "ask_parts", "read_answer", "read_ask"]

VERSION = 1
"""Of the format; raised when an older receiver must not read on."""
TYPES = ("query.join", "train", "evaluate")
"""Of messages that a client answers."""
MAX_BODY = 1 << 31
"""A longer body is refused before any of it is read; Flower's own messages are no longer."""
_PIECE = 1 << 20
"""Bytes of the body in one part."""
_SAME = "run the same fedpeft in the trainer and in the app"


@final
@dataclass(frozen=True, kw_only=True)
class Question:
    """One Flower message, and what the app's context knows."""

    message_type: str
    """One of TYPES."""
    run: int
    node: int
    node_config: UserConfig
    run_config: UserConfig
    experiment: str | None
    """The text of the file that the run config names; None where the app's bundle has none."""
    content: Content

    @property
    def client(self) -> int:
        """Which client lives on this node.

        Raises:
            WireError: the node config does not say.
        """
        found = self.node_config.get("partition-id")
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise WireError(f"node config: partition-id is {found!r}, expected the client's number, from 0")
        return found


def ask_parts(question: Question) -> Iterator[pb.AskPart]:
    """Yield a question's head, then its body in pieces."""
    ask = pb.Ask(
        version=VERSION,
        message_type=question.message_type,
        run=question.run,
        node=question.node,
        node_config=_values(question.node_config),
        run_config=_values(question.run_config),
        experiment=question.experiment,
        content=_head(question.content),
    )
    yield pb.AskPart(ask=ask)
    yield from (pb.AskPart(piece=piece) for piece in _pieces(question.content.body))


def read_ask(parts: Iterable[pb.AskPart], *, limit: int = MAX_BODY) -> tuple[Question, bytes]:
    """Return a question and its sha256: the same question, body and all, has the same.

    Raises:
        WireError: another version, not a head and the body it declares, a body over the limit in bytes, or damaged.
    """
    parts = iter(parts)
    first = next(parts, pb.AskPart())
    if first.WhichOneof("part") != "ask":
        raise WireError("question: begins with no head")
    ask = first.ask
    _require_version("question", ask.version)
    if ask.message_type not in TYPES:
        raise WireError(f"question: message type is {ask.message_type[:40]!r}, expected one of {', '.join(TYPES)}")
    body = _gather("question", ask.content, (part.piece for part in parts), limit)
    question = Question(
        message_type=ask.message_type,
        run=ask.run,
        node=ask.node,
        node_config=_config(ask.node_config),
        run_config=_config(ask.run_config),
        experiment=ask.experiment if ask.HasField("experiment") else None,
        content=Content(ask.content.header, ask.content.checksum, body),
    )
    return question, hashlib.sha256(ask.SerializeToString(deterministic=True)).digest()


def answer_parts(reply: Message) -> Iterator[pb.AnswerPart]:
    """Yield a reply's head, then its body in pieces; an error has no body."""
    if reply.has_error():
        failure = pb.Failure(code=reply.error.code, reason=reply.error.reason or "")
        yield pb.AnswerPart(answer=pb.Answer(version=VERSION, failure=failure))
        return
    content = content_of(reply.content)
    yield pb.AnswerPart(answer=pb.Answer(version=VERSION, content=_head(content)))
    yield from (pb.AnswerPart(piece=piece) for piece in _pieces(content.body))


def read_answer(parts: Iterable[pb.AnswerPart], *, limit: int = MAX_BODY) -> RecordDict | Error:
    """Return what a reply carries.

    Raises:
        WireError: as for read_ask.
    """
    parts = iter(parts)
    first = next(parts, pb.AnswerPart())
    if first.WhichOneof("part") != "answer":
        raise WireError("answer: begins with no head")
    answer = first.answer
    _require_version("answer", answer.version)
    if (kind := answer.WhichOneof("result")) is None:
        raise WireError(f"answer: neither content nor failure; {_SAME}")
    if kind == "failure":
        return Error(answer.failure.code, answer.failure.reason)
    body = _gather("answer", answer.content, (part.piece for part in parts), limit)
    content = answer.content
    return record_of(Content(content.header, content.checksum, body, content.signature))


def _head(content: Content) -> pb.Content:
    digest = hashlib.sha256(content.body).digest()
    num_bytes = len(content.body)
    return pb.Content(
        header=content.header,
        checksum=content.checksum,
        num_bytes=num_bytes,
        sha256=digest,
        signature=content.signature,
    )


def _pieces(body: bytes) -> Iterator[bytes]:
    return (body[start : start + _PIECE] for start in range(0, len(body), _PIECE))


def _gather(name: str, content: pb.Content, pieces: Iterator[bytes], limit: int) -> bytes:
    """Join pieces to the declared body; no more is ever held than was declared and one piece."""
    if content.num_bytes > limit:
        raise WireError(f"{name}: declares a body of {content.num_bytes} bytes, expected at most {limit}")
    body = bytearray()
    for piece in pieces:
        body += piece
        if not piece or len(body) > content.num_bytes:
            raise WireError(f"{name}: a piece of {len(piece)} bytes too many; {content.num_bytes} were declared in all")
    if len(body) < content.num_bytes:
        raise WireError(f"{name}: ends after {len(body)} of {content.num_bytes} bytes; cut short")
    if hashlib.sha256(body).digest() != content.sha256:
        raise WireError(f"{name}: the sha256 does not hold over {len(body)} bytes; damaged")
    return bytes(body)


def _require_version(name: str, version: int) -> None:
    if version != VERSION:
        raise WireError(f"{name}: version {version}, expected {VERSION}; {_SAME}")


def _values(config: UserConfig) -> dict[str, pb.Value]:
    return {name: _value(value) for name, value in config.items()}


def _value(value: bool | float | str) -> pb.Value:
    if isinstance(value, bool):
        return pb.Value(boolean=value)
    if isinstance(value, int):
        return pb.Value(integer=value)
    return pb.Value(real=value) if isinstance(value, float) else pb.Value(text=value)


def _config(values: Mapping[str, pb.Value]) -> UserConfig:
    config: UserConfig = {}
    for name, value in values.items():
        if (kind := value.WhichOneof("value")) is None:
            raise WireError(f"question: config key {name[:40]!r} has no value; {_SAME}")
        config[name] = getattr(value, kind)
    return config
