"""What a codec is: tensors to bytes and back, with a stated error bound."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from fedpeft.tensors import Spec, Tensors

__all__ = ["Codec"]


class Codec(ABC):
    """How tensors are packed. Concrete classes are final and hold only their options."""

    name: str

    @abstractmethod
    def encode(self, tensors: Tensors) -> bytes:
        """Pack float32 tensors.

        Raises:
            TensorMismatchError: a tensor is not float32; names it.
        """

    @abstractmethod
    def decode(self, data: bytes, manifest: Sequence[Spec]) -> Tensors:
        """Unpack into exactly this manifest, which comes from the receiver, never from the payload.

        Raises:
            WireError: the bytes are not an encoding of this manifest.
            TensorMismatchError: the receiver's own manifest is not all float32.
        """

    @abstractmethod
    def error_bound(self, tensors: Tensors) -> float:
        """Return a bound on the L2 norm of decode(encode(tensors)) - tensors; 0 for a lossless codec."""
