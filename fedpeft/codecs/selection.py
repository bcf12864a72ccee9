"""The k largest entries by magnitude: exactly k, ties to the lowest index, in about one pass over the data.

Magnitudes are compared as the integers that their bits are, which for finite floats is the same order; NaN and infinity
are above all numbers, so they cannot be left out unseen. Where to cut is guessed from a sample and then found exactly
among the entries above the guess; a guess that was too high costs a second pass, never an entry.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "Places", "largest", "place_type", "scatter"]

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[Any]
"""Of a flat array, ascending: int32 where that is wide enough, else int64."""

_MAGNITUDE = np.int32(0x7FFFFFFF)
_SAMPLE = 1 << 16
_CHUNK = 1 << 17
"""Entries whose temporaries stay in the cache."""


def place_type(num_entries: int) -> type[Any]:
    """Return the type of places among so many entries."""
    return np.int32 if num_entries < 1 << 31 else np.int64


def scatter(flat: Floats, places: Places, values: npt.ArrayLike) -> None:
    """Write values to their places, a part at a time: numpy makes wider copies of the places it is given."""
    given = np.asarray(values)
    for start in range(0, len(places), _CHUNK):
        part = slice(start, start + _CHUNK)
        flat[places[part]] = given[part]


def largest(flat: Floats, k: int) -> Places:
    """Return the ascending places of the k entries of largest magnitude, or of all that are not 0 if they are fewer."""
    if k <= 0 or not len(flat):
        return np.empty(0, place_type(len(flat)))
    bits = np.ascontiguousarray(flat).view(np.int32)
    guess = _guess(bits, k)
    found = _at_least(bits, guess)
    if len(found) < k and guess > 1:
        found = _at_least(bits, 1)
    return found if len(found) <= k else found[_exactly(bits[found] & _MAGNITUDE, k)]


def _exactly(magnitudes: npt.NDArray[np.int32], k: int) -> Places:
    """Return the ascending places of the k largest, of equal ones the first."""
    cut = len(magnitudes) - k
    kth = np.partition(magnitudes, cut)[cut]
    keep = magnitudes > kth
    ties = np.flatnonzero(magnitudes == kth)
    keep[ties[: k - int(np.count_nonzero(keep))]] = True
    return np.flatnonzero(keep)


def _guess(bits: npt.NDArray[np.int32], k: int) -> int:
    """Return a magnitude that a little more than k entries most likely reach; 1, the smallest above 0, in doubt."""
    stride = len(bits) // _SAMPLE | 1
    sample = bits[::stride] & _MAGNITUDE
    expected = k / len(bits) * len(sample)
    rank = int(expected + 4 * expected**0.5 + 8)
    if rank >= len(sample):
        return 1
    return max(1, int(np.partition(sample, len(sample) - rank)[len(sample) - rank]))


def _at_least(bits: npt.NDArray[np.int32], floor: int) -> Places:
    """Return the ascending places of the entries whose magnitude reaches the floor."""
    found = []
    for start in range(0, len(bits), _CHUNK):
        reached = (bits[start : start + _CHUNK] & _MAGNITUDE) >= floor
        found.append((np.flatnonzero(reached) + start).astype(place_type(len(bits)), copy=False))
    return np.concatenate(found)
