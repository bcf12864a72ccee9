"""Every codec in the folder: exact manifests, the stated error bound, and no damaged body that gets through."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedpeft import plugins
from fedpeft.codecs.base import Codec
from fedpeft.errors import TensorMismatchError, WireError
from fedpeft.tensors import Spec, Tensors
from fedpeft.wire import Envelope, Update, pack, unpack

NUM_CODECS = 2
NAMES = plugins.names("codec")
NUM_MUTANTS = 150

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
FIXED = Tensors({"w.B": torch.linspace(-1, 1, 12).reshape(3, 4), "w.A": torch.tensor(0.5), "none": torch.zeros(0, 2)})


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


@pytest.fixture(params=NAMES, scope="module")
def codec(request: pytest.FixtureRequest) -> Codec:
    """Each codec with its default options."""
    module = plugins.load("codec", request.param)
    made = module.make(module.Options())
    assert isinstance(made, Codec)
    return made


def test_the_sweep_is_of_all_codecs() -> None:
    assert len(NAMES) == NUM_CODECS, f"swept {NAMES}: raise NUM_CODECS with a new codec"


def test_a_codec_says_its_own_name(codec: Codec) -> None:
    assert codec.name in NAMES
    assert type(codec).__module__ == f"fedpeft.codecs.{codec.name}"


@settings(max_examples=120, deadline=None)
@given(tensors=drawn_tensors())
@example(tensors=Tensors())
@example(tensors=FIXED)
@example(tensors=Tensors({"__metadata__": torch.tensor(EXTREMES)}))
def test_what_arrives_has_the_manifest_and_keeps_the_bound(codec: Codec, tensors: Tensors) -> None:
    arrived = codec.decode(codec.encode(tensors), tensors.manifest())

    assert arrived.manifest() == tensors.manifest()
    doubled = arrived.to(torch.float64) - tensors.to(torch.float64)
    assert doubled.norm() <= codec.error_bound(tensors)
    if codec.error_bound(FIXED) == 0:
        assert arrived == tensors


def test_the_same_tensors_give_the_same_bytes_and_stay_as_they_were(codec: Codec) -> None:
    before = FIXED.digest()

    assert codec.encode(FIXED) == codec.encode(FIXED.map(torch.clone))
    assert FIXED.digest() == before


def test_what_is_not_float32_is_refused_both_ways(codec: Codec) -> None:
    doubled = FIXED.to(torch.float64)
    with pytest.raises(TensorMismatchError, match=f"codec {codec.name}: tensor w.B .* expected float32"):
        codec.encode(doubled)
    with pytest.raises(TensorMismatchError, match="expected float32"):
        codec.decode(codec.encode(FIXED), doubled.manifest())


def test_another_manifest_is_refused(codec: Codec) -> None:
    data, manifest = codec.encode(FIXED), FIXED.manifest()
    others = [manifest[1:], manifest[::-1], (), (*manifest, Spec(name="x", shape=(), dtype="float32"))]
    others += [
        (replace(manifest[0], shape=shape), *manifest[1:]) for shape in [(4, 3), (12,), (3,), (1 << 50, 1 << 50)]
    ]
    others += [(replace(manifest[0], name="w.C"), *manifest[1:])]
    for other in others:
        with pytest.raises(WireError):
            codec.decode(data, other)


def test_another_codecs_body_is_refused(codec: Codec) -> None:
    for name in NAMES:
        if name != codec.name:
            module = plugins.load("codec", name)
            with pytest.raises(WireError):
                codec.decode(module.make(module.Options()).encode(FIXED), FIXED.manifest())


def test_no_damaged_body_gets_through_the_wire(codec: Codec) -> None:
    update, body = update_of(codec.name), codec.encode(FIXED)
    record = pack(update, body)
    array = record.array_records["fedpeft.body"]["fedpeft.body"]
    for mutant in mutants(body):
        array.data, array.shape = mutant, (len(mutant),)
        with pytest.raises(WireError):
            unpack(record, Update)


def test_a_hostile_body_is_refused_or_gives_exactly_the_manifest(codec: Codec) -> None:
    for mutant in mutants(codec.encode(FIXED)):
        header, body = unpack(pack(update_of(codec.name), mutant), Update)
        try:
            arrived = codec.decode(body, FIXED.manifest())
        except WireError:
            continue
        assert arrived.manifest() == FIXED.manifest() == header.envelope.manifest


def update_of(codec: str) -> Update:
    """Return an update whose header fits FIXED."""
    manifest = FIXED.manifest()
    envelope = Envelope(
        job="j", round_number=1, config_hash="c", plan_hash="p", base_hash="b", codec=codec, manifest=manifest
    )
    return Update(envelope=envelope, client=1, num_examples=1, num_steps=1, train_loss=0.0, seconds=0.0)


def mutants(data: bytes) -> list[bytes]:
    """Return the data with bits flipped, cut, repeated, exchanged, lengthened, and with lengths that lie."""
    rng = random.Random(len(data))  # noqa: S311
    made = [b"", data + b"\0", data * 2, b"\xff" * 8 + data[8:], b"\0" * 8 + data[8:], data[8:]]
    while len(made) < NUM_MUTANTS:
        at, end = sorted(rng.randrange(len(data)) for _ in range(2))
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        made += [bytes(flipped), data[:at], data[:end] + data[at:], data[:at] + data[end:], data[end:] + data[:end]]
    return [mutant for mutant in made if mutant != data]
