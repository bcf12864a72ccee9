"""The algebra of named tensors against NumPy, and its strictness."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpeft.errors import TensorMismatchError
from fedpeft.tensors import Spec, Tensors, manifest_hash, require_manifest

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
ALIKE = st.tuples(st.dictionaries(st.text(max_size=5), SHAPES, max_size=4), st.integers(0, 2**32 - 1))


def draw(shapes: dict[str, tuple[int, ...]], seed: int) -> tuple[Tensors, dict[str, NDArray[np.float64]]]:
    """Return the same float64 values twice: as Tensors and as NumPy arrays."""
    rng = np.random.default_rng(seed)
    arrays = {name: np.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4)) for name, shape in shapes.items()}
    return Tensors((name, torch.tensor(array)) for name, array in arrays.items()), arrays


def assert_same(tensors: Tensors, arrays: dict[str, NDArray[np.float64]]) -> None:
    """Equal names in equal order, equal shapes, equal values to the bit."""
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        assert np.array_equal(tensors[name].numpy(), array)


@settings(max_examples=60, deadline=None)
@given(ALIKE, st.floats(-10, 10))
def test_the_algebra_is_numpys(alike: tuple[dict[str, tuple[int, ...]], int], factor: float) -> None:
    shapes, seed = alike
    (a, x), (b, y) = draw(shapes, seed), draw(shapes, seed + 1)

    assert_same(a + b, {name: x[name] + y[name] for name in x})
    assert_same(a - b, {name: x[name] - y[name] for name in x})
    assert_same(a * factor, {name: x[name] * factor for name in x})
    dot = sum(float(np.vdot(x[name], y[name])) for name in x)
    size = sum(float(np.vdot(abs(x[name]), abs(y[name]))) for name in x)
    assert a.dot(b) == pytest.approx(dot, rel=0, abs=1e-13 * size)
    assert a.norm() == pytest.approx(sum(float(np.vdot(v, v)) for v in x.values()) ** 0.5, rel=1e-12)
    assert a.num_elements == sum(v.size for v in x.values())


@settings(max_examples=40, deadline=None)
@given(ALIKE)
def test_laws_that_hold_to_the_bit(alike: tuple[dict[str, tuple[int, ...]], int]) -> None:
    shapes, seed = alike
    (a, _), (b, _) = draw(shapes, seed), draw(shapes, seed + 1)

    assert a + b == b + a
    assert a - a == a.zeros()
    assert a * 1.0 == a
    assert a * 2.0 == a + a
    assert a + a.zeros() == a
    assert a.dot(b) == b.dot(a)
    assert a.to(torch.float64) == a
    assert a.select(a) == a
    assert a.replace(b) == b
    assert a.map(torch.clone) == a


def test_inner_products_are_summed_in_float64() -> None:
    ones = Tensors({"a": torch.full((1 << 20,), 0.1), "b": torch.tensor(1e-3)})

    assert ones.norm() ** 2 == pytest.approx((1 << 20) * float(np.float32(0.1)) ** 2 + 1e-6, rel=1e-9)
    assert Tensors({"a": torch.tensor(1e30)}).norm() == pytest.approx(1e30, rel=1e-6)


HAVE = Tensors({"a": torch.zeros(2, 1), "b": torch.zeros(3)})
OTHERS: dict[str, tuple[Tensors, str]] = {
    "a shape that would broadcast": (Tensors({"a": torch.zeros(1, 2), "b": torch.zeros(3)}), r"a \[1, 2\] float32"),
    "a scalar": (Tensors({"a": torch.tensor(0.0), "b": torch.zeros(3)}), r"a \[\] float32"),
    "another dtype": (HAVE.to(torch.float64), r"a \[2, 1\] float64"),
    "another name": (Tensors({"a": torch.zeros(2, 1), "c": torch.zeros(3)}), r"tensor 1 is c \[3\]"),
    "another order": (Tensors({"b": torch.zeros(3), "a": torch.zeros(2, 1)}), r"tensor 0 is b"),
    "one less": (HAVE.select(["a"]), r"tensor 1 is missing, expected b"),
    "one more": (Tensors({**HAVE, "c": torch.zeros(1)}), r"tensor 2 is c .*, expected nothing"),
}
OPERATIONS: dict[str, Callable[[Tensors, Tensors], object]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "require": lambda a, b: b.require(a.manifest(), where="tensor algebra"),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize(("other", "words"), OTHERS.values(), ids=OTHERS)
def test_what_differs_is_refused_by_its_first_difference(
    operation: Callable[[Tensors, Tensors], object], other: Tensors, words: str
) -> None:
    with pytest.raises(TensorMismatchError, match=f"tensor algebra: .*{words}|tensor algebra: {words}"):
        operation(HAVE, other)


@pytest.mark.parametrize(("other", "_"), OTHERS.values(), ids=OTHERS)
def test_dot_equality_and_digest_tell_them_apart(other: Tensors, _: str) -> None:
    with pytest.raises(TensorMismatchError, match="dot"):
        HAVE.dot(other)
    assert other != HAVE
    assert other.digest() != HAVE.digest()
    assert manifest_hash(other.manifest()) != manifest_hash(HAVE.manifest())


def test_names_are_known_and_distinct() -> None:
    with pytest.raises(TensorMismatchError, match="no tensor 'c' among 2"):
        HAVE.select(["a", "c"])
    with pytest.raises(TensorMismatchError, match="replace: tensor 2 is c"):
        HAVE.replace({"c": torch.zeros(1)})
    with pytest.raises(TensorMismatchError, match="twice"):
        Tensors([("a", torch.zeros(1)), ("a", torch.zeros(1))])


def test_selecting_keeps_the_maps_own_order() -> None:
    assert list(HAVE.select(["b", "a", "b"])) == ["a", "b"]


def test_a_map_is_unmoved_by_what_it_was_made_from() -> None:
    source = {"a": torch.zeros(1)}
    tensors = Tensors(source)
    source["b"] = torch.zeros(1)

    assert list(tensors) == ["a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_entry_that_is_not_finite_is_named(value: float) -> None:
    assert HAVE.require_finite(where="here") is HAVE
    with pytest.raises(TensorMismatchError, match="update of client 3: tensor 'b' has a NaN or infinite"):
        HAVE.replace({"b": torch.tensor([0.0, value, 0.0])}).require_finite(where="update of client 3")


def test_equality_and_digest_are_of_bits() -> None:
    nan, zero, minus = (Tensors({"a": torch.tensor([value])}) for value in (float("nan"), 0.0, -0.0))

    assert nan == nan.map(torch.clone)
    assert zero != minus
    assert zero != Tensors({"b": torch.tensor([0.0])})
    assert zero != {"a": torch.tensor([0.0])}


def test_digest_looks_at_values_not_at_memory() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    turned = matrix.t().contiguous().t()

    assert Tensors({"a": turned}).digest() == Tensors({"a": matrix}).digest()
    assert Tensors({"a": torch.arange(10.0)[::5][:1]}).digest() == Tensors({"a": torch.zeros(1)}).digest()
    assert Tensors({"a": matrix.bfloat16()}).digest() != Tensors({"a": matrix}).digest()


def test_a_manifest_is_compared_in_order() -> None:
    a, b = Spec(name="a", shape=(2, 3), dtype="float32"), Spec(name="b", shape=(), dtype="float32")

    require_manifest([a, b], [a, b], where="here")
    with pytest.raises(TensorMismatchError, match=r"here: tensor 0 is b \[\] float32, expected a \[2, 3\] float32"):
        require_manifest([b, a], [a, b], where="here")
    assert (a.num_elements, b.num_elements) == (6, 1)
    assert repr(Tensors({"b": torch.tensor(1.0)})) == "Tensors(b [] float32)"
