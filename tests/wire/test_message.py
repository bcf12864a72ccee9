"""Headers: what is refused on reading, what is refused as meant for another run, and what is kept."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fedpeft.errors import WireError
from fedpeft.strategies.base import Directive
from fedpeft.tensors import Spec
from fedpeft.wire.convert import MAX_HEADER_BYTES, MAX_TENSORS, from_bytes, to_bytes
from fedpeft.wire.message import VERSION, Broadcast, Carried, Envelope, Evaluated, Header, Join, Update, expect
from fedpeft.wire.pb.v1 import messages_pb2 as pb

DIGEST = bytes(32)
MANIFEST = tuple(
    Spec(name=name, shape=shape, dtype="float32") for name, shape in (("w.B", (2, 3)), ("w.A", ()), ("head", (0, 4)))
)
"""Of conftest's tensors."""


def expected(envelope: Envelope) -> dict[str, Any]:
    """Return what a receiver in the same run asks for."""
    names = ("job", "round_number", "config_hash", "plan_hash", "base_hash", "codec", "privacy")
    return {"manifest": MANIFEST, **{name: vars(envelope)[name] for name in names}}


def as_message(header: Header) -> pb.Header:
    """Return a header as protobuf, to be changed at will."""
    return pb.Header.FromString(to_bytes(header, payload_sha256=DIGEST))


def test_a_message_of_the_same_run_is_welcome(headers: list[Header]) -> None:
    for header in headers:
        expect(header, **expected(header.envelope))


def test_what_a_joining_node_cannot_know_is_not_asked(envelope: Envelope) -> None:
    wanted = {**expected(envelope), "plan_hash": None, "base_hash": None}

    expect(Join(envelope=envelope), **wanted)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("job", "other", r"job quickstart-1 is not this run's other; the client works for another run"),
        ("round_number", 3, r"round 2 is not this run's 3; a late or repeated message"),
        ("client", 4, r"client 3 is not this run's 4"),
        ("config_hash", "f" * 64, r"config hash c{12}\.\.\. is not this run's f{12}\.\.\.; .* another experiment file"),
        ("plan_hash", "f" * 64, r"plan hash d{12}\.\.\. is not this run's f{12}\.\.\.; .* another plan"),
        ("base_hash", "f" * 64, r"base hash e{12}\.\.\. is not this run's f{12}\.\.\.; .* another base model"),
        ("codec", ("int8",), r"codec none is not this run's int8; the client packs"),
        ("codec", ("top_k", "int8"), r"codec none is not this run's top_k then int8"),
        (
            "manifest",
            (),
            r"carries tensors of manifest \w{12}\.\.\., 7 scalars, expected 4f53cda18c2b\.\.\., 0; names, ",
        ),
        (
            "manifest",
            MANIFEST[::-1],
            r"carries tensors of manifest .*, 7 scalars, expected .*, 7; names, shapes or order",
        ),
        ("told", MANIFEST[2:], r"manifest: tensor 0 is missing, expected head \[0, 4\] float32"),
        ("privacy", '{"clip":1}', r"claims nothing for privacy, and this run has {\"clip\":1}"),
    ],
)
def test_a_message_of_another_run_is_refused_by_name(update: Update, field: str, value: object, words: str) -> None:
    with pytest.raises(WireError, match=f"^update of client 3: {words}"):
        expect(update, **{**expected(update.envelope), field: value})


def test_a_client_that_refuses_names_the_server(envelope: Envelope) -> None:
    header = Broadcast(envelope=envelope, client=3, kind="train")

    with pytest.raises(WireError, match=r"broadcast to client 3: config hash .*; the server runs another experiment"):
        expect(header, **{**expected(envelope), "config_hash": "f" * 64})


def test_an_unknown_version_is_refused_by_name(update: Update) -> None:
    for version in (0, VERSION + 1):
        message = as_message(update)
        message.version = version
        with pytest.raises(WireError, match=f"version {version}, expected {VERSION}"):
            from_bytes(message.SerializeToString(), Update)


def test_a_field_of_a_newer_sender_is_kept_when_the_header_is_passed_on(update: Update) -> None:
    newer_envelope, newer_update = b"\xfa\x07\x05hello", b"\xfa\x07\x03new"
    message = as_message(update)
    message.MergeFromString(newer_envelope)
    message.update.MergeFromString(newer_update)

    header, digest = from_bytes(message.SerializeToString(), Update)
    again = to_bytes(replace(header, client=9), payload_sha256=digest)

    assert header == update
    assert newer_envelope in again
    assert newer_update in again
    assert from_bytes(again, Update)[0].client == 9


def test_a_chain_is_named_in_order_and_one_codec_has_the_bytes_it_always_had(update: Update) -> None:
    chain = replace(update, envelope=replace(update.envelope, codec=("top_k", "int8")))

    assert from_bytes(to_bytes(chain, payload_sha256=DIGEST), Update)[0].envelope.codec == ("top_k", "int8")
    assert b"\x4a\x04none" in to_bytes(update, payload_sha256=DIGEST)


def test_an_unknown_codec_is_refused_by_name(update: Update) -> None:
    newer = replace(update, envelope=replace(update.envelope, codec=("wavelet",)))
    with pytest.raises(WireError, match="codec wavelet is not this run's none"):
        expect(newer, **expected(update.envelope))
    with pytest.raises(WireError, match="codec missing is not this run's none"):
        expect(replace(update, envelope=replace(update.envelope, codec=())), **expected(update.envelope))


def test_a_kind_of_a_newer_sender_is_refused(update: Update) -> None:
    message = as_message(update)
    message.ClearField("update")
    message.MergeFromString(b"\xea\x02\x00")

    with pytest.raises(WireError, match="kind is none that version 1 knows, expected update"):
        from_bytes(message.SerializeToString(), Update)


CHANGES: dict[str, tuple[Callable[[pb.Header], object], str]] = {
    "more elements than there are": (
        lambda m: setattr(m, "num_elements", 1 << 60),
        "num_elements' = .*, expected 0 to",
    ),
    "fewer elements than told": (lambda m: m.manifest.add(name="x", shape=[8]), "num_elements' = 7, expected 8 to"),
    "the same name twice": (lambda m: [m.manifest.add(name="w.A") for _ in "12"], "distinct names"),
    "an empty name": (lambda m: m.manifest.add(dtype="float32"), "distinct names"),
    "too many dimensions": (lambda m: m.manifest.add(name="x").shape.extend([1 << 60] * 100_000), "dimensions"),
    "too many tensors": (lambda m: [m.manifest.add() for _ in range(MAX_TENSORS + 1)], "at most 16384"),
    "too many stages": (lambda m: m.codec.extend(["x"] * 8), "codec of 9 stages, expected at most 8"),
    "too many bytes": (lambda m: setattr(m, "job", "j" * MAX_HEADER_BYTES), "at most 2097152"),
    "no examples": (lambda m: setattr(m.update, "num_examples", 0), "num_examples' = 0, expected 1 to"),
    "more examples than there are": (lambda m: setattr(m.update, "num_examples", 1 << 60), "num_examples"),
    "more steps than there are": (lambda m: setattr(m.update, "num_steps", 1 << 60), "num_steps' = .*, expected 0 to"),
    "a loss of nan": (lambda m: setattr(m.update, "train_loss", math.nan), "train_loss' = nan, expected a finite"),
    "a loss of infinity": (lambda m: setattr(m.update, "train_loss", math.inf), "train_loss"),
    "negative time": (lambda m: setattr(m.update, "seconds", -1.0), "seconds' = -1.0, expected a finite number >= 0"),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_a_field_that_holds_what_it_must_not_is_refused(
    update: Update, change: Callable[[pb.Header], object], words: str
) -> None:
    message = as_message(update)
    change(message)

    with pytest.raises(WireError, match=words):
        from_bytes(message.SerializeToString(), Update)


def test_a_broadcast_asks_for_something_known(envelope: Envelope) -> None:
    message = as_message(Broadcast(envelope=envelope, client=3, kind="train"))
    for kind in (0, 7):
        message.broadcast.kind = kind  # type: ignore[assignment]
        with pytest.raises(WireError, match=f"kind {kind}, expected one of"):
            from_bytes(message.SerializeToString(), Broadcast)


def test_bytes_that_are_no_protobuf_are_refused() -> None:
    for data in (b"\xff" * 8, b"\x12\x02\xff\xfe", b"\x0a\x7f"):
        with pytest.raises(WireError, match="no protobuf message"):
            from_bytes(data, Update)


WRONG_DIRECTIVES = (
    Directive(train=("a", "a")),
    Directive(rank=0),
    Directive(rank=-1),
    Directive(rank=2**32),
    Directive(held=1),
    Directive(rank=3, held=3),
    Directive(rank=3, held=-1),
    Directive(scale=0.0),
    Directive(scale=-1.0),
    Directive(scale=math.nan),
    Directive(scale=math.inf),
)


def test_what_a_directive_leaves_out_takes_no_bytes(envelope: Envelope) -> None:
    plain, full = (
        Broadcast(envelope=envelope, client=3, kind="train", directive=directive)
        for directive in (Directive(), Directive(rank=1, scale=2.0))
    )

    empty, told = (as_message(header).broadcast.directive for header in (plain, full))

    assert empty.ByteSize() == 0
    assert (told.rank, told.scale, told.held) == (1, 2.0, 0)


def test_a_sender_is_refused_what_a_receiver_would_refuse(envelope: Envelope, update: Update) -> None:
    wrong: list[Header] = [
        replace(update, train_loss=math.nan),
        replace(update, client=-1),
        replace(update, num_examples=0),
        replace(update, envelope=replace(envelope, round_number=-1)),
        replace(update, envelope=replace(envelope, carries=Carried.of(MANIFEST * 2, told=MANIFEST * 2))),
        Evaluated(envelope=envelope, client=3, num_examples=1, sums={"loss": math.inf}),
        *(Broadcast(envelope=envelope, client=3, kind="train", directive=directive) for directive in WRONG_DIRECTIVES),
    ]
    for header in wrong:
        with pytest.raises(WireError):
            to_bytes(header, payload_sha256=DIGEST)


def test_what_a_sender_wrote_is_shown_short_and_on_one_line(update: Update) -> None:
    message = as_message(update)
    message.manifest.extend(pb.TensorSpec(name="secret\n" * 1000, shape=[0] * 9) for _ in "12")

    with pytest.raises(WireError) as caught:
        from_bytes(message.SerializeToString(), Update)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
