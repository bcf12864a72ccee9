"""Every codec in the folder: exact manifests, the stated error bound, and no damaged body that gets through.

Ten thousand damaged bodies in all. Under the wire's checksum none is accepted. Sealed again by a hostile sender, each
is refused or gives finite tensors of exactly the manifest, soon and in bounded memory.
"""

import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedpeft import plugins
from fedpeft.codecs.base import Codec, Common
from fedpeft.codecs.chain import chained
from fedpeft.errors import TensorMismatchError, WireError
from fedpeft.tensors import Spec, Tensors
from fedpeft.wire.message import Carried, Envelope, Update
from fedpeft.wire.payload import pack, unpack

NUM_CODECS = 8
NAMES = plugins.names("codec")
PASSING_NAN = ("none", "bfloat16")
"""These have codes for NaN and infinity; the round refuses such a reply after decoding."""
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "compeft": [
        {"density": 1.0},
        {"densities": {"other": 0.0, "B": 0.4}},
        {"scale": "dp_norm", "norm": 1.0, "density": 0.5},
    ],
    "int4": [{"block": 3}],
    "int8": [{"block": 1}],
    "random_k": [{"density": 0.6, "rescale": True}],
    "top_k": [{"density": 0.0}, {"density": 1.0}, {"density": 0.3, "densities": {"B": 0.0}}],
}
"""Beside each codec's defaults."""
CHAINS = [["top_k", "int8"], ["random_k", "top_k", "int4"], ["top_k", "compeft"]]
NUM_VARIANTS = 20
NUM_MUTANTS = int(os.environ.get("FEDPEFT_MUTANTS", "10400")) // NUM_VARIANTS
"""Of each variant; ``make fuzz`` has a million in all."""
COMMON = Common(roles={"w.A": "A", "w.B": "B", "none": "head"}, seed=5)

EXTREMES = [
    0.0,
    -0.0,
    1.0,
    2.0**-149,
    2.0**-134,
    2.0**-126,
    1.1754942e-38,
    3.3895314e38,
    torch.finfo(torch.float32).max,
]
VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(EXTREMES)
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
FIXED = Tensors(
    {"w.B": torch.linspace(-1, 1, 300).reshape(30, 10), "w.A": torch.tensor(0.5), "none": torch.zeros(0, 2)}
)
LARGE = Tensors({"w.B": torch.linspace(-1, 1, 1_000_000).reshape(1000, 1000), "w.A": torch.linspace(1, 2, 1000)})


@st.composite
def drawn_tensors(draw: st.DrawFn) -> Tensors:
    """Draw float32 tensors: empty, of no dimension, of one element, and with extreme values among them."""
    shapes = draw(st.dictionaries(st.text(max_size=6), SHAPES, max_size=4))
    return Tensors((name, drawn_tensor(draw, shape)) for name, shape in shapes.items())


def drawn_tensor(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw one tensor of a shape."""
    num_elements = Spec(name="", shape=shape, dtype="float32").num_elements
    values = draw(st.lists(VALUES, min_size=num_elements, max_size=num_elements))
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def made(name: str, **options: Any) -> Codec:
    """Make one codec."""
    module = plugins.load("codec", name)
    codec = module.make(module.Options(**options))
    assert isinstance(codec, Codec)
    return codec


def variants() -> Iterator[Any]:
    """Yield each codec with its default options and others, and chains of codecs."""
    for name in NAMES:
        for options in ({}, *OPTIONS.get(name, [])):
            yield pytest.param(made(name, **options), id=f"{name}{options or ''}")
    yield from (pytest.param(chained([made(name) for name in chain]), id="+".join(chain)) for chain in CHAINS)


VARIANTS = [*variants()]


@pytest.fixture(params=VARIANTS, scope="module")
def codec(request: pytest.FixtureRequest) -> Codec:
    """Each variant in turn."""
    assert isinstance(request.param, Codec)
    return request.param


def test_the_sweep_is_of_all_codecs() -> None:
    assert len(NAMES) == NUM_CODECS, f"swept {NAMES}: raise NUM_CODECS with a new codec"
    assert len(VARIANTS) == NUM_VARIANTS
    assert NUM_VARIANTS * NUM_MUTANTS >= 10_000


def test_a_codec_says_its_own_name(codec: Codec) -> None:
    assert set(codec.name.split("+")) <= set(NAMES)
    assert type(codec).__module__ in (f"fedpeft.codecs.{codec.name}", "fedpeft.codecs.chain")


@settings(max_examples=120, deadline=None)
@given(tensors=drawn_tensors())
@example(tensors=Tensors())
@example(tensors=FIXED)
@example(tensors=Tensors({"__metadata__": torch.tensor(EXTREMES)}))
def test_what_arrives_has_the_manifest_and_keeps_the_bound(codec: Codec, tensors: Tensors) -> None:
    arrived = codec.decode(codec.encode(tensors, COMMON), tensors.manifest(), COMMON)

    assert arrived.manifest() == tensors.manifest()
    doubled = arrived.to(torch.float64) - tensors.to(torch.float64)
    assert doubled.norm() <= codec.error_bound(tensors, COMMON)
    if codec.error_bound(FIXED, COMMON) == 0 and not codec.changes_only:
        assert arrived == tensors


def test_the_same_tensors_give_the_same_bytes_and_stay_as_they_were(codec: Codec) -> None:
    before = FIXED.digest()

    assert codec.encode(FIXED, COMMON) == codec.encode(FIXED.map(torch.clone), COMMON)
    assert FIXED.digest() == before


def test_what_is_not_float32_is_refused_both_ways(codec: Codec) -> None:
    doubled = FIXED.to(torch.float64)
    with pytest.raises(TensorMismatchError, match=r"codec \w+: tensor w.B .* expected float32"):
        codec.encode(doubled, COMMON)
    with pytest.raises(TensorMismatchError, match="expected float32"):
        codec.decode(codec.encode(FIXED, COMMON), doubled.manifest(), COMMON)


def test_another_manifest_is_refused(codec: Codec) -> None:
    data, manifest = codec.encode(FIXED, COMMON), FIXED.manifest()
    others = [manifest[1:], manifest[::-1], (), (*manifest, Spec(name="x", shape=(), dtype="float32"))]
    others += [
        (replace(manifest[0], shape=shape), *manifest[1:]) for shape in [(10, 30), (300,), (3,), (1 << 50, 1 << 50)]
    ]
    others += [(replace(manifest[0], name="w.C"), *manifest[1:])]
    for other in others:
        with pytest.raises(WireError):
            codec.decode(data, other, COMMON)


def test_another_codecs_body_is_refused(codec: Codec) -> None:
    for name in NAMES:
        if name != codec.name:
            with pytest.raises(WireError):
                codec.decode(made(name).encode(FIXED, COMMON), FIXED.manifest(), COMMON)


def test_no_damaged_body_gets_through_the_wire(codec: Codec) -> None:
    update, body = update_of(codec.name), codec.encode(FIXED, COMMON)
    record = pack(update, body)
    array = record.array_records["fedpeft.body"]["fedpeft.body"]
    for mutant in mutants(codec):
        array.data, array.shape = mutant, (len(mutant),)
        with pytest.raises(WireError):
            unpack(record, Update)


def test_a_hostile_body_is_refused_or_gives_exactly_the_manifest(codec: Codec) -> None:
    for mutant in mutants(codec):
        header, body = unpack(pack(update_of(codec.name), mutant), Update)
        began = time.monotonic()
        try:
            arrived = codec.decode(body, FIXED.manifest(), COMMON)
        except WireError:
            continue
        finally:
            assert time.monotonic() - began < 1
        assert arrived.manifest() == FIXED.manifest()
        assert header.envelope.carries == Carried.of(FIXED.manifest())
        if codec.name not in PASSING_NAN:
            arrived.require_finite(where="arrived")


def test_a_body_for_a_large_manifest_takes_no_more_memory_than_that(codec: Codec) -> None:
    """A third more than the tensors, and 14 bytes for each entry kept, whatever eight bytes of the body claim."""
    data = codec.encode(LARGE, COMMON)
    kept = sum(int((tensor != 0).sum()) for tensor in codec.decode(data, LARGE.manifest(), COMMON).values())
    cap = round(1.35 * 4 * LARGE.num_elements) + 14 * kept
    tracemalloc.start()
    for at in (*range(0, 100, 3), *range(len(data) - 100, len(data) - 8, 9)):
        for value in (2**64 - 1, 2**40, LARGE.num_elements, 1, 0):
            mutant = data[:at] + struct.pack("<Q", value) + data[at + 8 :]
            tracemalloc.reset_peak()
            held, began = tracemalloc.get_traced_memory()[0], time.monotonic()
            with suppress(WireError):
                codec.decode(mutant, LARGE.manifest(), COMMON)
            assert tracemalloc.get_traced_memory()[1] - held < cap + len(mutant)
            assert time.monotonic() - began < 1
    tracemalloc.stop()


def update_of(codec: str) -> Update:
    """Return an update whose header fits FIXED."""
    manifest = FIXED.manifest()
    envelope = Envelope(
        job="j",
        round_number=1,
        config_hash="c",
        plan_hash="p",
        base_hash="b",
        codec=tuple(codec.split("+")),
        carries=Carried.of(manifest),
    )
    return Update(envelope=envelope, client=1, num_examples=1, num_steps=1, train_loss=0.0, seconds=0.0)


def mutants(codec: Codec) -> list[bytes]:
    """Return a body damaged in every way: bits, cuts, splices, exchanged parts, lying counts and poisoned floats."""
    data, other = codec.encode(FIXED, COMMON), codec.encode(FIXED * -3.5, COMMON)
    rng = random.Random(len(data))  # noqa: S311
    damages: list[Callable[[int, int], bytes]] = [
        lambda at, _: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        lambda at, _: data[:at],
        lambda at, end: data[:end] + data[at:],
        lambda at, end: data[:at] + data[end:],
        lambda at, end: data[end:] + data[:end],
        lambda at, _: data[:at] + other[at:],
        lambda at, end: data[:at] + data[end : end + 8] + data[at + 8 : end] + data[at : at + 8] + data[end + 8 :],
        lambda at, _: data[:at] + struct.pack("<Q", rng.choice(COUNTS)) + data[at + 8 :],
        lambda at, _: data[:at] + struct.pack("<I", rng.choice(COUNTS) % 2**32) + data[at + 4 :],
        lambda at, _: data[: at & ~3] + struct.pack("<f", rng.choice(POISON)) + data[(at & ~3) + 4 :],
        lambda at, _: data[:at] + struct.pack("<f", rng.choice(POISON)) + data[at + 4 :],
    ]
    found = [
        b"",
        data + b"\0",
        data * 2,
        b"\xff" * 8 + data[8:],
        b"\0" * 8 + data[8:],
        data[8:],
        data[:16] + bytes(4000),
    ]
    while len(found) < NUM_MUTANTS:
        at, end = sorted(_place(data, rng) for _ in range(2))
        found += [mutant for damage in damages if (mutant := damage(at, end)) != data]
    return found


def _place(data: bytes, rng: random.Random) -> int:
    """Draw a place, mostly behind a seal: a damaged seal hides what comes after it."""
    return rng.randrange(24 if rng.random() < 0.9 and len(data) > 40 else 0, len(data))


COUNTS = (0, 1, 2, 3, 7, 255, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
POISON = (float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, -3e38, 3.4028234e38)
