"""Places come back as they were, at the entropy bound, from the same bytes on every machine, or are refused."""

import math
from itertools import accumulate, pairwise

import constriction
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedpeft.codecs.frame import Reader, number
from fedpeft.codecs.positions import _model, _size, _weights, read_positions, write_positions
from fedpeft.errors import WireError


def reread(data: bytes, num_entries: int, most: int) -> list[int]:
    """Decode, and require that nothing is left."""
    reader = Reader(data, codec="x")
    found = read_positions(reader, num_entries, most=most)
    reader.end()
    return found.tolist()


def entropy_bytes(num_entries: int, k: int) -> float:
    """Return n H(k/n) in bytes."""
    share = k / num_entries
    terms = [p * math.log2(p) for p in (share, 1 - share) if p]
    return -num_entries * sum(terms) / 8


@st.composite
def drawn_places(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Draw a number of entries and places among them."""
    num_entries = draw(st.integers(1, 60) | st.sampled_from([1000, 100_000, 1 << 40]))
    places = draw(st.sets(st.integers(0, num_entries - 1), max_size=60))
    return num_entries, sorted(places)


@settings(max_examples=300, deadline=None)
@given(drawn=drawn_places())
@example(drawn=(1, [0]))
@example(drawn=(5, [0, 1, 2, 3, 4]))
@example(drawn=(0, []))
@example(drawn=(100_000, [99_999]))
def test_places_come_back(drawn: tuple[int, list[int]]) -> None:
    num_entries, places = drawn
    if num_entries == 1 << 40:
        num_entries = 1 << 22
        places = [place >> 18 for place in places if place >> 18 != 0]
        places = sorted(set(places))

    data = write_positions(np.array(places, np.int64), num_entries)

    assert reread(data, num_entries, len(places)) == places


@pytest.mark.parametrize("density", [0.0001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("pattern", ["random", "the first", "the last", "in two blocks"])
def test_the_size_is_at_the_entropy_bound_whatever_the_pattern(density: float, pattern: str) -> None:
    size = 1_000_000
    k = int(density * size)
    places = {
        "random": np.sort(np.random.default_rng(0).permutation(size)[:k]),
        "the first": np.arange(k),
        "the last": np.arange(size - k, size),
        "in two blocks": np.r_[: k // 2, size - k + k // 2 : size],
    }[pattern].astype(np.int64)

    data = write_positions(places, size)

    assert len(data) <= 1.0005 * entropy_bytes(size, k) + 64
    assert reread(data, size, k) == places.tolist()


@pytest.mark.parametrize(("num_entries", "k"), [(10, 3), (1000, 50), (50_000_000, 2_500_000), (7, 7), (10**9, 1)])
def test_the_models_numbers_are_the_integers_that_both_sides_compute(num_entries: int, k: int) -> None:
    """Symbol i owns exactly the quantiles from sum(weights[:i]) + i on: no float of the library's has a say."""
    weights, model = _weights(num_entries, k), _model(num_entries, k)
    assert sum(weights) == (1 << 24) - len(weights)
    assert min(weights) >= 0
    starts = [*accumulate((weight + 1 for weight in weights), initial=0)]
    for symbol, (start, end) in enumerate(pairwise(starts)):
        for quantile in (start, end - 1):
            words = np.array([quantile] if quantile else [], np.uint32)
            assert constriction.stream.stack.AnsCoder(words).decode(model) == symbol


def test_the_weights_are_those_of_the_geometric_law() -> None:
    weights, share = _weights(1000, 50), 0.05

    ideal = [share * (1 - share) ** gap for gap in range(len(weights) - 1)]
    ideal.append(1 - sum(ideal))
    assert np.allclose(np.array(weights) / sum(weights), ideal, atol=2.0**-23, rtol=0)


def test_the_bytes_are_these_and_will_stay_these() -> None:
    data = write_positions(np.array([0, 3, 4, 90, 99], np.int64), 100)

    assert data.hex() == PINNED


PINNED = "0500000000000000050000000000000002000000000000008ca30c7046470000"


def test_lying_counts_are_refused_before_anything_is_decoded() -> None:
    data = write_positions(np.arange(0, 1000, 20), 1000)
    k, symbols, words = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8, 16))
    body = data[24:]
    lies = {
        "kept entries": (k + 1, symbols, words),
        "symbols = ": (k, k - 1, words),
        "symbols": (k, k + 1000 // _size(1000, k) + 1, words),
        "words = ": (k, symbols, symbols + 1),
        "words of": (k, symbols, symbols),
        "do not say": (k - 1, symbols, words),
    }
    for what, counts in lies.items():
        with pytest.raises(WireError, match=f"codec x: .*{what}"):
            reread(b"".join(map(number, counts)) + body, 1000, 50)
    with pytest.raises(WireError, match="kept entries = 1844"):
        reread(number(2**64 - 1) + data[8:], 1000, 50)


def test_words_that_are_not_all_used_or_end_in_nothing_are_refused() -> None:
    data = write_positions(np.arange(0, 1000, 20), 1000)
    head, body = data[:16], data[24:]
    for words in (body + bytes(4), body[:-4] + b"\xff\xff\xff\xff", b"\xff\xff\xff\xff" + body):
        with pytest.raises(WireError, match="do not say which 50 of 1000"):
            reread(head + number(len(words) // 4) + words, 1000, 50)
    for words in (1, 0):
        with pytest.raises(WireError):
            reread(number(0) + number(words) + number(1) + bytes(4), 1000, 50)
