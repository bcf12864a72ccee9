"""Float32 as it stands: lossless, 4 bytes an element, in the safetensors layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedpeft.codecs.base import NOTHING, Codec, Common
from fedpeft.codecs.layout import read, require_float32, write
from fedpeft.config.base import Frozen
from fedpeft.tensors import Spec, Tensors

__all__ = ["Lossless", "Options", "make"]


@final
class Options(Frozen):
    """Nothing to choose."""


@final
@dataclass(frozen=True)
class Lossless(Codec):
    """Every bit arrives, NaN payloads and the sign of zero included."""

    name = "none"

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Pack float32 tensors.

        Raises:
            TensorMismatchError: a tensor is not float32; names it.
        """
        require_float32(tensors.manifest(), codec=self.name)
        return write(tensors)

    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest.

        Raises:
            WireError: the length or the header is not this manifest's.
            TensorMismatchError: the manifest itself is not all float32.
        """
        require_float32(manifest, codec=self.name)
        return read(data, manifest, codec=self.name)

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return 0."""
        return 0.0


def make(options: Options) -> Codec:
    """Return the codec."""
    return Lossless()
