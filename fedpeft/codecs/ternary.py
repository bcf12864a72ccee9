"""Signs as bits, and vectors of -s, 0 and s."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fedpeft.codecs.frame import Reader
from fedpeft.codecs.selection import Floats, Places

__all__ = ["Bits", "read_signs", "scattered", "std", "toward_zero", "write_signs"]

Bits = npt.NDArray[np.uint8]
_CHUNK = 1 << 16


def write_signs(values: Floats) -> bytes:
    """Return one bit a value, 1 where it is negative, eight a byte, lowest first: as short as even signs can be."""
    return np.packbits(np.signbit(values), bitorder="little").tobytes()


def read_signs(reader: Reader, count: int) -> Bits:
    """Take so many bits.

    Raises:
        WireError: too few bytes are left, or the last byte's unused bits are not 0.
    """
    packed = reader.array("u1", (count + 7) // 8, "signs")
    if count % 8 and packed[-1] >> count % 8:
        raise reader.fault("bits are set after the last sign")
    return np.unpackbits(packed, count=count, bitorder="little")


def scattered(num_entries: int, places: Places, negative: Bits, scale: float) -> Floats:
    """Return a flat vector of 0 but for the scale, or minus it, at these places."""
    flat = np.zeros(num_entries, np.float32)
    signed = np.array([scale, -scale], np.float32)
    for start in range(0, len(places), _CHUNK):
        part = slice(start, start + _CHUNK)
        flat[places[part]] = signed[negative[part]]
    return flat


def std(flat: Floats) -> float:
    """Return the standard deviation with Bessel's correction, in float64."""
    doubled: npt.NDArray[Any] = flat.astype(np.float64)
    return float(doubled.std(ddof=1))


def toward_zero(value: float) -> float:
    """Return the largest float32 that is not above a positive number."""
    rounded = np.float32(min(value, float(np.finfo(np.float32).max)))
    return float(np.nextafter(rounded, np.float32(0)) if float(rounded) > value else rounded)
