"""Bodies without names: a seal that binds codec, options and manifest, then arrays whose sizes the receiver knows.

All numbers are little endian. The seal is no protection against a forger (the wire's checksum and the channel are); it
tells honest mistakes apart: another codec, other options, another manifest, for ``random_k`` another round's body.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedpeft.config.base import Frozen
from fedpeft.errors import WireError
from fedpeft.tensors import Spec, manifest_hash

__all__ = ["SEAL_BYTES", "Reader", "number", "seal"]

SEAL_BYTES = 16


def seal(codec: str, options: Frozen, manifest: Sequence[Spec], *more: str | int) -> bytes:
    """Return 16 bytes that another codec, other options or another manifest do not give."""
    bound = [codec, options.model_dump(mode="json"), manifest_hash(manifest), *more]
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).digest()[:SEAL_BYTES]


def number(value: int) -> bytes:
    """Return a count as 8 bytes."""
    return value.to_bytes(8, "little")


@final
class Reader:
    """Takes a body apart from front to back; nothing is allocated before the bytes for it are known to be there."""

    def __init__(self, data: bytes, *, codec: str) -> None:
        self._rest, self._codec = memoryview(data), codec

    def fault(self, what: str) -> WireError:
        """Return an error that names the codec."""
        return WireError(f"codec {self._codec}: {what}")

    def sealed(self, expected: bytes) -> None:
        """Take the seal.

        Raises:
            WireError: it is another one.
        """
        if self.take(SEAL_BYTES, "seal") != expected:
            raise self.fault("the body's seal is not that of this codec, its options and the expected manifest")

    def take(self, num_bytes: int, what: str) -> memoryview:
        """Take the next bytes.

        Raises:
            WireError: fewer are left.
        """
        if num_bytes > len(self._rest):
            raise self.fault(f"{what} of {num_bytes} bytes, and {len(self._rest)} are left")
        taken, self._rest = self._rest[:num_bytes], self._rest[num_bytes:]
        return taken

    def number(self, what: str, *, least: int = 0, most: int) -> int:
        """Take a count.

        Raises:
            WireError: it is out of bounds.
        """
        value = int.from_bytes(self.take(8, what), "little")
        if not least <= value <= most:
            raise self.fault(f"{what} = {value}, expected {least} to {most}")
        return value

    def array(self, dtype: str, count: int, what: str) -> npt.NDArray[Any]:
        """Take an array, as a read-only view.

        Raises:
            WireError: too few bytes are left.
        """
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(count * kind.itemsize, what), kind)

    def floats(self, count: int, what: str, *, most: float = float(np.finfo(np.float32).max)) -> npt.NDArray[Any]:
        """Take float32 numbers of at most this magnitude, as a read-only view.

        Raises:
            WireError: too few bytes are left, or one is NaN or too large.
        """
        values = self.array("<f4", count, what)
        if not bool((np.abs(values) <= most).all()):
            raise self.fault(f"{what} with a number that is not finite or larger than {most:.3g}")
        return values

    def rest(self) -> memoryview:
        """Take all that is left."""
        return self.take(len(self._rest), "rest")

    def end(self) -> None:
        """Refuse what is left.

        Raises:
            WireError: something is.
        """
        if len(self._rest):
            raise self.fault(f"{len(self._rest)} bytes too many")
