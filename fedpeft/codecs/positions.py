"""Which k of n entries: their gaps, entropy-coded by ANS (the library constriction) under the geometric model of k / n.

A gap is the number of entries left out before a kept one. One of ``size`` or more is sent as so many escapes, each of
which stands for ``size`` left out. The geometric law has no memory, so escapes cost what they should: whatever the
pattern, k positions take n H(k/n) bits, to within the model's 24 bits of precision. The model's weights follow from n
and k by integer arithmetic, and they sum to exactly what constriction scales them to, so that its own arithmetic is
exact: both sides hold equal models on any machine. What travels of the model is k.

Layout: k, number of symbols, number of words (8 bytes each), then the words (4 bytes each).
"""

from itertools import pairwise

import constriction
import numpy as np
import numpy.typing as npt

from fedpeft.codecs.frame import Reader, number
from fedpeft.codecs.selection import Places, place_type

__all__ = ["read_positions", "write_positions"]

_PRECISION = 24
"""Bits of a probability in constriction's default coders."""
_FIXED = 62
"""Fractional bits of the weights while they are computed."""
_LARGEST_SIZE = 1 << 12
_CHUNK = 1 << 15
"""Symbols decoded at once: bounds what decoding takes beyond its result."""

_Symbols = npt.NDArray[np.int32]


def write_positions(places: Places, num_entries: int) -> bytes:
    """Encode ascending distinct places below num_entries."""
    if not len(places):
        return number(0) * 3
    size = _size(num_entries, len(places))
    symbols = _symbols(np.diff(places, prepend=places.dtype.type(-1)) - 1, size)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, _model(num_entries, len(places)))
    words = coder.get_compressed().astype("<u4", copy=False)
    return b"".join([number(len(places)), number(len(symbols)), number(len(words)), words.tobytes()])


def read_positions(reader: Reader, num_entries: int, *, most: int) -> Places:
    """Take at most so many ascending distinct places below num_entries.

    Raises:
        WireError: the bytes are not what write_positions gives for any such places.
    """
    k = reader.number("kept entries", most=most)
    most_symbols = k + num_entries // _size(num_entries, k) if k else 0
    num_symbols = reader.number("symbols", least=k, most=most_symbols)
    words = reader.array("<u4", reader.number("words", most=num_symbols), "words")
    coder = constriction.stream.stack.AnsCoder(words.astype(np.uint32) if len(words) and words[-1] else None)
    places = _places(coder, num_entries, k, num_symbols) if k else np.empty(0, place_type(num_entries))
    if places is None or not coder.is_empty() or (len(words) and not words[-1]):
        raise reader.fault(f"the words do not say which {k} of {num_entries} entries are kept")
    return places


def _places(coder: constriction.stream.stack.AnsCoder, num_entries: int, k: int, num_symbols: int) -> Places | None:
    """Decode k places below num_entries, or None where the symbols are not those of such."""
    size, model = _size(num_entries, k), _model(num_entries, k)
    places, filled, end, last = np.empty(k, place_type(num_entries)), 0, -1, size
    for start in range(0, num_symbols, _CHUNK):
        symbols = coder.decode(model, min(_CHUNK, num_symbols - start))
        ones = symbols != size
        ends = np.cumsum(np.where(ones, symbols + 1, size), dtype=np.int64) + end
        kept, end, last = ends[ones], int(ends[-1]), int(symbols[-1])
        if filled + len(kept) > k:
            return None
        places[filled : filled + len(kept)] = kept
        filled += len(kept)
    return places if filled == k and last != size and end < num_entries else None


def _symbols(gaps: Places, size: int) -> _Symbols:
    """Return each gap as its escapes and what is left of it."""
    escapes, rest = np.divmod(gaps, size)
    if not escapes.any():
        return rest.astype(np.int32)
    ends = np.cumsum(escapes + 1) - 1
    symbols = np.full(int(ends[-1]) + 1, size, np.int32)
    symbols[ends] = rest
    return symbols


def _size(num_entries: int, k: int) -> int:
    """Return how many gaps have a symbol of their own: a power of two of about four mean gaps."""
    return min(_LARGEST_SIZE, 1 << (4 * num_entries // k).bit_length())


def _model(num_entries: int, k: int) -> constriction.stream.model.Categorical:
    """Return the law of a gap's symbol: geometric below the size, the rest for an escape."""
    weights = np.array(_weights(num_entries, k), np.float64)
    return constriction.stream.model.Categorical(weights, perfect=False)


def _weights(num_entries: int, k: int) -> list[int]:
    """Return the weights, one a symbol, that sum to 2**24 less one for each symbol: constriction adds the one."""
    size = _size(num_entries, k)
    free, left = (1 << _PRECISION) - (size + 1), 1 << _FIXED
    cumulative = [0]
    for _ in range(size):
        left = left * (num_entries - k) // num_entries
        cumulative.append(free - (free * left >> _FIXED))
    return [end - start for start, end in pairwise([*cumulative, free])]
