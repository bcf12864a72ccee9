"""Questions and answers as parts: to the bit, bounded, and refused by name when they are not whole."""

import hashlib
from collections.abc import Callable

import pytest
from flwr.app import Error, Message, RecordDict

from fedpeft.errors import WireError
from fedpeft.trainer.message import answer_parts, ask_parts, read_answer, read_ask
from fedpeft.wire.pb.v1 import trainer_pb2 as pb
from fedpeft.wire.record import content_of, record_of
from tests.hostile import keyring
from tests.trainer.conftest import question, replying
from tests.trainer.light import content, message_of

PIECE = 1 << 20
Parts = list[pb.AskPart]


def asked(body: bytes = b"some body") -> Parts:
    return list(ask_parts(question(content=content(body))))


@pytest.mark.parametrize(("size", "pieces"), [(0, 0), (1, 1), (PIECE, 1), (PIECE + 1, 2), (3 * PIECE, 3)])
def test_a_question_comes_as_it_was_sent(size: int, pieces: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    sent = question(content=content(body))

    parts = list(ask_parts(sent))
    came, _ = read_ask(pb.AskPart.FromString(part.SerializeToString()) for part in parts)

    assert came == sent
    assert {key: type(value) for key, value in came.node_config.items()} == {
        "partition-id": int,
        "whole": bool,
        "share": float,
        "word": str,
    }
    assert len(parts) == 1 + pieces


def test_a_question_without_a_file_says_so_and_an_empty_file_is_one() -> None:
    for text in (None, ""):
        assert read_ask(ask_parts(question(experiment=text)))[0].experiment == text


def test_the_same_question_has_the_same_key_and_any_other_has_another() -> None:
    changes = ({}, {}, {"run": 1}, {"content": content(b"Body")}, {"content": content(header=b"Header")})
    more = ({"message_type": "evaluate"}, {"node_config": {"partition-id": 2}}, {"experiment": None})
    keys = [read_ask(ask_parts(question(**change)))[1] for change in (*changes, *more)]

    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1


def damage_bytes(parts: Parts) -> None:
    parts[1].piece = b"some b0dy"


def cut(parts: Parts) -> None:
    parts[1].piece = b"some"


def add(parts: Parts) -> None:
    parts.append(pb.AskPart(piece=b"x"))


def add_nothing(parts: Parts) -> None:
    parts.append(pb.AskPart(piece=b""))


def repeat_head(parts: Parts) -> None:
    parts.append(parts[0])


def lose_head(parts: Parts) -> None:
    del parts[0]


def lose_all(parts: Parts) -> None:
    parts.clear()


def age(parts: Parts) -> None:
    parts[0].ask.version = 2


def rename(parts: Parts) -> None:
    parts[0].ask.message_type = "query.secrets"


def unset(parts: Parts) -> None:
    parts[0].ask.node_config["k"].Clear()


def declare_more(parts: Parts) -> None:
    parts[0].ask.content.num_bytes = 1001


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damage_bytes, "question: the sha256 does not hold over 9 bytes"),
        (cut, "question: ends after 4 of 9 bytes"),
        (add, "question: a piece of 1 bytes too many; 9 were declared"),
        (add_nothing, "question: a piece of 0 bytes too many"),
        (repeat_head, "question: a piece of 0 bytes too many"),
        (lose_head, "question: begins with no head"),
        (lose_all, "question: begins with no head"),
        (age, "question: version 2, expected 1; run the same fedpeft"),
        (rename, "message type is 'query.secrets', expected one of query.join, train, evaluate"),
        (unset, "config key 'k' has no value"),
        (declare_more, "declares a body of 1001 bytes, expected at most 1000"),
    ],
)
def test_what_is_wrong_with_a_question_is_named(change: Callable[[Parts], None], said: str) -> None:
    parts = asked()
    change(parts)
    with pytest.raises(WireError, match=said):
        read_ask(parts, limit=1000)


def test_no_more_is_read_than_was_declared_and_one_piece() -> None:
    taken = []

    def endless() -> object:
        yield asked()[0]
        for number in range(1000):
            taken.append(number)
            yield pb.AskPart(piece=b"12345")

    with pytest.raises(WireError, match="too many"):
        read_ask(endless())  # type: ignore[arg-type]
    assert taken == [0, 1]


def test_an_answer_comes_as_it_was_sent() -> None:
    came = read_answer(answer_parts(replying(message_of(), b"\0" * (PIECE + 7))))

    assert isinstance(came, RecordDict)
    assert content_of(came) == content(b"\0" * (PIECE + 7))


def test_a_clients_signature_comes_with_its_answer() -> None:
    """The trainer signs, and the app that carries the answer on has no key."""
    _, signers = keyring(1)
    signed = signers[0].signed(record_of(content(b"body")))
    came = read_answer(answer_parts(Message(signed, reply_to=message_of())))
    assert isinstance(came, RecordDict)
    assert content_of(came) == content_of(signed)
    assert len(content_of(came).signature) == 64


def test_an_error_comes_with_its_code_and_words() -> None:
    came = read_answer(answer_parts(Message(Error(1000, "words"), reply_to=message_of())))

    assert isinstance(came, Error)
    assert (came.code, came.reason) == (1000, "words")


def test_what_is_wrong_with_an_answer_is_named() -> None:
    head = pb.Content(header=b"h", checksum=b"c", num_bytes=3, sha256=hashlib.sha256(b"abc").digest())
    whole = [pb.AnswerPart(answer=pb.Answer(version=1, content=head)), pb.AnswerPart(piece=b"abd")]
    for parts, said in (
        ([], "answer: begins with no head"),
        ([pb.AnswerPart(answer=pb.Answer(version=1))], "answer: neither content nor failure"),
        ([pb.AnswerPart(answer=pb.Answer(version=3, content=head))], "answer: version 3"),
        (whole, "answer: the sha256 does not hold"),
        (whole[:1], "answer: ends after 0 of 3 bytes"),
    ):
        with pytest.raises(WireError, match=said):
            read_answer(parts)
    with pytest.raises(WireError, match="at most 2"):
        read_answer(whole, limit=2)


@pytest.mark.parametrize("config", [{}, {"partition-id": "1"}, {"partition-id": True}, {"partition-id": -1}])
def test_a_node_that_is_no_client_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(WireError, match="partition-id is"):
        _ = question(node_config=config).client
