"""The k largest by a slow oracle: sorted by magnitude, then by place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.codecs.selection import largest


def oracle(values: list[float], k: int) -> list[int]:
    """Return the places of the k largest magnitudes above 0, ties to the lowest place, ascending."""
    order = sorted((place for place, value in enumerate(values) if value), key=lambda place: -abs(values[place]))
    return sorted(order[:k])


FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-149, -(2.0**-149), 3e38])


@settings(max_examples=200, deadline=None)
@given(values=st.lists(FEW | st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40), data=st.data())
def test_ties_go_to_the_lowest_place_and_zeros_are_never_kept(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values) + 1))

    assert largest(np.array(values, np.float32), k).tolist() == oracle(values, k)


@pytest.mark.parametrize("shape", ["normal", "few values", "sorted", "one block", "a spike in each row", "sparse"])
@pytest.mark.parametrize("density", [0.0001, 0.05, 0.5, 0.999])
def test_a_guess_that_fails_costs_no_entry(shape: str, density: float) -> None:
    rng, size = np.random.default_rng(0), 300_001
    flat = rng.standard_normal(size, dtype=np.float32)
    if shape == "few values":
        flat = rng.integers(-3, 4, size).astype(np.float32)
    elif shape == "sorted":
        flat.sort()
    elif shape == "one block":
        flat[:1000] *= 1000
        flat[1000:] = 0
    elif shape == "a spike in each row":
        flat[::5] *= 1e6
    elif shape == "sparse":
        flat[rng.random(size) < 0.97] = 0
    k = int(density * size)

    found = largest(flat, k)

    order = np.lexsort((np.arange(size), -np.abs(flat.astype(np.float64))))
    expected = np.sort(order[:k])
    assert found.tolist() == expected[flat[expected] != 0].tolist()
