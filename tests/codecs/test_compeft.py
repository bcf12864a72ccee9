"""ComPEFT by hand and by a slow oracle in float64; sizes at the entropy bound; what is refused."""

import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.codecs.base import Common
from fedpeft.codecs.compeft import ComPEFT, Options
from fedpeft.errors import TensorMismatchError, WireError
from fedpeft.tensors import Tensors

TAU = [0.9, -0.1, 0.05, -0.7, 0.3, 0.02, -0.4, 0.15, 0.0, -0.25]
ROLES = {"m.A": "A", "m.B": "B", "head": "head", "n.A": "A"}
COMMON = Common(roles=ROLES)


def through(codec: ComPEFT, tensors: Tensors, common: Common = COMMON) -> Tensors:
    """Encode and decode."""
    return codec.decode(codec.encode(tensors, common), tensors.manifest(), common)


def of(values: list[float]) -> Tensors:
    """Return one tensor."""
    return Tensors({"x": torch.tensor(values)})


def test_the_specifications_vector() -> None:
    """k = 0.3 of ten keeps three: the authors' code keeps index 4 too."""
    found = through(ComPEFT(Options(density=0.3, scale="std", alpha=1.0)), of(TAU))["x"]

    assert torch.sign(found).tolist() == [1, 0, 0, -1, 0, 0, -1, 0, 0, 0]
    assert found[0].item() == pytest.approx(0.4278901728, rel=1e-7)
    assert through(ComPEFT(Options(density=0.3)), of(TAU))["x"][0].item() == pytest.approx(2 / 3, rel=1e-7)


def test_ties_go_to_the_first_and_zeros_have_no_sign() -> None:
    found = through(ComPEFT(Options(density=0.5)), of([1.0, -2.0, 1.0, -1.0, 2.0, 1.0]))["x"]
    assert torch.sign(found).tolist() == [1, -1, 0, 0, 1, 0]
    assert found.abs().max().item() == pytest.approx(5 / 3)
    assert through(ComPEFT(Options(density=1.0)), of([0.0, -0.0, 3.0]))["x"].tolist() == [0, 0, 3]


def oracle(tensors: Tensors, options: Options) -> dict[str, list[float]]:
    """Return what arrives, class by class, from Python's own numbers."""
    arrived = {name: [0.0] * tensor.numel() for name, tensor in tensors.items()}
    kept: dict[str, list[tuple[str, int, float]]] = {}
    everything: dict[str, list[float]] = {}
    for name in ("A", "B", "head", "other"):
        names = [tensor for tensor in tensors if ROLES.get(tensor, "other") == name]
        entries = [(tensor, i, v) for tensor in names for i, v in enumerate(tensors[tensor].flatten().tolist())]
        share = options.densities.get(name, options.density)  # type: ignore[call-overload]
        k = max(1 if share and entries else 0, int(share * len(entries) + 0.5))
        order = sorted(range(len(entries)), key=lambda place, e=entries: (-abs(e[place][2]), place))  # type: ignore[misc]
        kept[name] = [entries[place] for place in order[:k] if entries[place][2]]
        everything[name] = [value for _, _, value in entries]
    total = sum(map(len, kept.values()))
    for name, entries in kept.items():
        if entries:
            scale = {
                "mean_abs": lambda e=entries: math.fsum(abs(v) for _, _, v in e) / len(e),
                "std": lambda n=name: (
                    (options.alpha or 1.0) * float(np.std(np.array(everything[n], np.float64), ddof=1))
                ),
                "dp_norm": lambda: (options.norm or 0) / math.sqrt(total),
            }[options.scale]()
            for tensor, place, value in entries:
                arrived[tensor][place] = math.copysign(scale, value)
    return arrived


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_positions_signs_and_scales_are_the_oracles(data: st.DataObject) -> None:
    value = st.sampled_from([0.0, 1.0, -1.0, 0.25, -3.0]) | st.floats(-1e3, 1e3, width=32)
    shapes = data.draw(
        st.dictionaries(st.sampled_from([*ROLES, "other", "more"]), st.lists(st.integers(0, 5), max_size=3))
    )
    tensors = Tensors(
        (name, torch.tensor(data.draw(st.lists(value, min_size=math.prod(s), max_size=math.prod(s)))).reshape(s))
        for name, s in shapes.items()
    )
    share = st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]) | st.floats(0, 1)
    rule = data.draw(
        st.sampled_from([{"scale": "mean_abs"}, {"scale": "dp_norm", "norm": 2.0}, {"scale": "std", "alpha": 3.0}])
    )
    densities = data.draw(st.dictionaries(st.sampled_from(["A", "B", "head", "other"]), share, max_size=2))
    options = Options(density=data.draw(share), densities=densities, **rule)  # type: ignore[arg-type]
    codec = ComPEFT(options)
    try:
        found = through(codec, tensors)
    except TensorMismatchError:
        assert options.scale == "std"
        return
    for name, expected in oracle(tensors, options).items():
        got = found[name].flatten().tolist()
        assert [math.copysign(1, v) if v else 0 for v in got] == [
            math.copysign(1, v) if v else 0 for v in expected
        ] or (options.scale == "std")
        assert got == pytest.approx(expected, rel=2e-7, abs=1e-30)
    assert (found - tensors).norm() <= codec.error_bound(tensors, COMMON) * (1 + 1e-6)


def test_classes_are_cut_apart_with_a_scale_each() -> None:
    tensors = Tensors(
        {"m.B": torch.tensor([100.0, -50.0]), "m.A": torch.tensor([1.0, 0.5]), "head": torch.tensor([7.0, -8.0])}
    )
    options = Options(density=0.5, densities={"head": 1.0})

    found = through(ComPEFT(options), tensors)

    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "m.B": [100, 0],
        "m.A": [1, 0],
        "head": [7.5, -7.5],
    }
    nameless = through(ComPEFT(Options(density=0.5)), tensors, Common())
    assert nameless["m.A"].tolist() == [0, 0]


def test_dp_norm_is_never_exceeded_and_sends_no_scale() -> None:
    tensors = Tensors({name: torch.randn(977, generator=torch.Generator().manual_seed(3)) for name in ("m.A", "m.B")})
    with_norm, plain = ComPEFT(Options(scale="dp_norm", norm=0.7)), ComPEFT(Options())

    norm = through(with_norm, tensors).norm()

    assert 0.7 * (1 - 2.0**-23) <= norm <= 0.7
    assert len(plain.encode(tensors, COMMON)) - len(with_norm.encode(tensors, COMMON)) == 8


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2])
def test_a_million_take_the_entropy_bound_within_a_percent(density: float) -> None:
    tensors = Tensors({"m.A": torch.randn(1_000_000, generator=torch.Generator().manual_seed(1))})
    bits = -density * math.log2(density) - (1 - density) * math.log2(1 - density) + density

    size = len(ComPEFT(Options(density=density)).encode(tensors, COMMON))

    assert size <= 1.01 * bits * 1e6 / 8
    assert size <= 1.0005 * bits * 1e6 / 8 + 200
    if density == 0.05:
        assert 4e6 / size > 90


def test_mean_abs_is_the_best_scale_and_twice_the_best_is_no_better_than_nothing() -> None:
    tensors = Tensors({"x": torch.randn(20_000, generator=torch.Generator().manual_seed(2))})

    def error(**rule: Any) -> float:
        return (through(ComPEFT(Options(density=0.05, **rule)), tensors) - tensors).norm() / tensors.norm()

    assert error() < min(error(scale="std", alpha=alpha) for alpha in (1.5, 2.0, 2.7, 3.5))
    assert error(scale="std", alpha=4.6) < 1 < error(scale="std", alpha=4.8)


def test_another_seal_is_refused() -> None:
    tensors = Tensors({"m.A": torch.randn(50), "m.B": torch.randn(50)})
    data, manifest = ComPEFT(Options()).encode(tensors, COMMON), tensors.manifest()
    others = [
        (ComPEFT(Options(density=0.06)), COMMON),
        (ComPEFT(Options()), Common(roles={"m.A": "B", "m.B": "A"})),
        (ComPEFT(Options()), Common()),
    ]
    for codec, common in others:
        with pytest.raises(WireError, match="codec compeft: the body's seal is not that of this codec"):
            codec.decode(data, manifest, common)
    with pytest.raises(WireError, match="seal"):
        ComPEFT(Options()).decode(data, (replace(manifest[0], name="x"), manifest[1]), COMMON)


def test_poisoned_scales_and_signs_are_refused() -> None:
    tensors, codec = of([float(v) for v in range(1, 41)]), ComPEFT(Options(density=0.25))
    data, manifest = codec.encode(tensors), tensors.manifest()
    at = data.index(struct.pack("<f", 35.5))
    for value in (math.nan, math.inf, -math.inf, -35.5, -0.0):
        with pytest.raises(WireError, match="codec compeft: scale"):
            codec.decode(data[:at] + struct.pack("<f", value) + data[at + 4 :], manifest)
    with pytest.raises(WireError, match="bits are set after the last sign"):
        codec.decode(data[:-1] + b"\x80", manifest)
    with pytest.raises(WireError, match="1 bytes too many"):
        codec.decode(data + b"\0", manifest)
    nothing = ComPEFT(Options(density=0.0))
    empty = nothing.encode(tensors)
    with pytest.raises(WireError, match="for 0 entries"):
        nothing.decode(empty[:-4] + struct.pack("<f", 1.0), manifest)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_sent(value: float) -> None:
    for density in (0.0, 0.5):
        with pytest.raises(TensorMismatchError, match="codec compeft: tensor 'x' has a NaN or infinite entry"):
            ComPEFT(Options(density=density)).encode(of([1.0, value, 2.0]))


def test_one_entry_has_no_std() -> None:
    with pytest.raises(TensorMismatchError, match="class other has one entry, so no std; use mean_abs"):
        ComPEFT(Options(scale="std")).encode(of([1.0]))
