"""Header and body as one Flower record: they come back as they were, or are refused."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedpeft.codecs.none import Lossless
from fedpeft.errors import WireError
from fedpeft.strategies.base import Directive
from fedpeft.tensors import Tensors
from fedpeft.wire.message import Broadcast, Envelope, Header, Join, Update
from fedpeft.wire.payload import pack, size, unpack

NUM_MUTANTS = 150


def through_flower(part: Any) -> Any:
    """Take a record apart into Flower's own bytes and put it together again."""
    children = {key: through_flower(child) for key, child in (part.children or {}).items()}
    return type(part).inflate(part.deflate(), children or None)


def raw(record: RecordDict) -> tuple[bytes, bytes, bytes]:
    """Return header, checksum and body without any check."""
    config, body = record.config_records["fedpeft.header"], record.array_records["fedpeft.body"]["fedpeft.body"]
    head, checksum = config["fedpeft.header"], config["checksum"]
    assert isinstance(head, bytes)
    assert isinstance(checksum, bytes)
    return head, checksum, body.data


def record_of(head: bytes, checksum: bytes, body: bytes) -> RecordDict:
    """Build a record from any three byte strings."""
    array = Array(dtype="uint8", shape=(len(body),), stype="fedpeft.v1", data=body)
    config = ConfigRecord({"fedpeft.header": head, "checksum": checksum})
    return RecordDict({"fedpeft.header": config, "fedpeft.body": ArrayRecord({"fedpeft.body": array})})


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit, cut, repeat, exchange or insert bytes; the result differs from the input."""
    at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    flipped = bytearray(data)
    flipped[at - 1] ^= 1 << rng.randrange(8)
    mutants = [bytes(flipped), data[:at], data[at:], data[:end] + data[at:], data[end:] + data[:at] + b"\0", b""]
    return next(mutant for mutant in rng.sample(mutants, len(mutants)) if mutant != data)


def test_every_kind_of_header_comes_back_as_it_was(headers: list[Header], body: bytes) -> None:
    for header in headers:
        assert unpack(pack(header, body), type(header)) == (header, body)


def test_flowers_own_serialization_changes_nothing(headers: list[Header], body: bytes) -> None:
    for header in headers:
        for sent in (body, b"", bytes(3)):
            assert unpack(through_flower(pack(header, sent)), type(header)) == (header, sent)


def test_the_same_header_gives_the_same_bytes(headers: list[Header], body: bytes) -> None:
    for header in headers:
        assert raw(pack(header, body)) == raw(pack(header, body))


def test_size_counts_every_byte_of_header_checksum_and_body(update: Update, body: bytes) -> None:
    record = pack(update, body)

    assert size(record) == sum(len(part) for part in raw(record))
    assert size(record) - size(pack(update, b"")) == len(body)


def test_a_client_may_be_asked_to_train_nothing_or_everything(envelope: Envelope) -> None:
    for train in (None, ()):
        header = Broadcast(envelope=envelope, client=1, kind="train", directive=Directive(train=train))
        assert unpack(pack(header), Broadcast)[0].directive.train == train


def test_another_kind_is_refused_by_name(headers: list[Header]) -> None:
    for header in headers:
        wanted = Join if not isinstance(header, Join) else Update
        with pytest.raises(WireError, match=f"kind is .*, expected {wanted.__name__.lower()}"):
            unpack(pack(header), wanted)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "checksum", "body"])
def test_no_damaged_part_is_accepted(update: Update, body: bytes, part: int) -> None:
    rng, parts = random.Random(part), raw(pack(update, body))  # noqa: S311
    for _ in range(NUM_MUTANTS):
        mutant = [*parts]
        mutant[part] = damage(parts[part], rng)
        with pytest.raises(WireError):
            unpack(record_of(mutant[0], mutant[1], mutant[2]), Update)


def test_parts_of_two_messages_do_not_go_together(update: Update, body: bytes) -> None:
    one, two = raw(pack(update, body)), raw(pack(replace(update, client=4), body[:-4] + b"abcd"))
    for choice in range(1, 7):
        head, checksum, tail = ((one, two)[choice >> part & 1][part] for part in range(3))
        with pytest.raises(WireError):
            unpack(record_of(head, checksum, tail), Update)


def test_a_damaged_header_under_a_right_checksum_is_read_or_refused_but_never_crashes(
    update: Update, body: bytes, reseal: Callable[[bytes, bytes], bytes]
) -> None:
    rng, (head, _, _) = random.Random(9), raw(pack(update, body))  # noqa: S311
    mutants = [damage(head, rng) for _ in range(2 * NUM_MUTANTS)]
    accepted = 0
    for mutant in mutants:
        with suppress(WireError):
            unpack(record_of(mutant, reseal(mutant, body), body), Update)
            accepted += 1
    assert accepted < NUM_MUTANTS


def test_a_body_of_another_manifest_is_refused_by_the_codec(update: Update, tensors: Tensors) -> None:
    codec, manifest = Lossless(), tensors.manifest()
    wrong = [
        manifest[:-1],
        manifest[::-1],
        (*manifest, replace(manifest[0], name="extra")),
        (replace(manifest[0], name="other"), *manifest[1:]),
        (replace(manifest[0], shape=(3, 2)), *manifest[1:]),
        (replace(manifest[0], shape=(1 << 40, 1 << 40)), *manifest[1:]),
    ]
    _, body = unpack(pack(update, codec.encode(tensors)), Update)

    for other in wrong:
        with pytest.raises(WireError):
            codec.decode(body, other)


STRUCTURES: dict[str, Callable[[RecordDict], object]] = {
    "no header": lambda r: r.pop("fedpeft.header"),
    "no body": lambda r: r.pop("fedpeft.body"),
    "an extra record": lambda r: r.update({"more": MetricRecord({"loss": 1.0})}),
    "a header that is no config": lambda r: r.update({"fedpeft.header": MetricRecord({"loss": 1.0})}),
    "a body that is no array": lambda r: r.update({"fedpeft.body": ConfigRecord({"fedpeft.body": b"x"})}),
    "an extra key": lambda r: r.config_records["fedpeft.header"].update({"more": b"x"}),
    "a missing checksum": lambda r: r.config_records["fedpeft.header"].pop("checksum"),
    "a checksum that is text": lambda r: r.config_records["fedpeft.header"].update({"checksum": "x"}),
    "an extra array": lambda r: r.array_records["fedpeft.body"].update({"more": array_of(b"")}),
    "another dtype": lambda r: r.array_records["fedpeft.body"].update({"fedpeft.body": array_of(b"", dtype="object")}),
    "another shape": lambda r: r.array_records["fedpeft.body"].update(
        {"fedpeft.body": array_of(b"", shape=(1 << 60,))}
    ),
    "another stype": lambda r: r.array_records["fedpeft.body"].update({"fedpeft.body": array_of(b"", stype="pickle")}),
}


def array_of(data: bytes, *, dtype: str = "uint8", shape: tuple[int, ...] = (0,), stype: str = "fedpeft.v1") -> Array:
    """Build a Flower array that may say anything of itself."""
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


@pytest.mark.parametrize("change", STRUCTURES.values(), ids=STRUCTURES)
def test_another_structure_is_refused(update: Update, change: Callable[[RecordDict], object]) -> None:
    record = pack(update)
    change(record)

    for read in (lambda: unpack(record, Update), lambda: size(record)):
        with pytest.raises(WireError, match="record"):
            read()
