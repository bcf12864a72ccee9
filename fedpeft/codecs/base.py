"""What a codec is: tensors to bytes and back, with a stated error bound; and what a chain of codecs is made of."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from fedpeft.tensors import Spec, Tensors

__all__ = ["NOTHING", "Codec", "Common", "Kept", "Sparse"]


@final
@dataclass(frozen=True, kw_only=True)
class Common:
    """What sender and receiver of one body know alike before it travels, so that none of it has to travel."""

    roles: Mapping[str, str] = field(default_factory=dict)
    """Tensor -> what it is, in a slot's words: ``A``, ``B``, ``head``. What is not named here is of no such kind."""
    seed: int | None = None
    """Of this one body, and of no other round, client or direction."""


NOTHING = Common()


class Codec(ABC):
    """How tensors are packed. Concrete classes are final and hold only their options."""

    name: str
    changes_only: bool = False
    """Whether entries arrive as 0 that were not: right for a change, ruinous for an adapter's values."""

    @abstractmethod
    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Pack float32 tensors.

        Raises:
            TensorMismatchError: a tensor is not float32, or holds a NaN or infinity that this codec has no code for.
            UnsupportedError: the codec needs something in common that was not given.
        """

    @abstractmethod
    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest, which comes from the receiver, never from the payload.

        No more memory is taken than a small multiple of what the manifest asks for, whatever the payload says.

        Raises:
            WireError: the bytes are not an encoding of this manifest.
            TensorMismatchError: the receiver's own manifest is not all float32.
            UnsupportedError: the codec needs something in common that was not given.
        """

    def received(self, tensors: Tensors, common: Common = NOTHING) -> Tensors:
        """Return what the other side decodes of tensors that are sent.

        Raises:
            TensorMismatchError: as encode.
            UnsupportedError: as encode.
        """
        return self.decode(self.encode(tensors, common), tensors.manifest(), common)

    def grows(self) -> str | None:
        """Return why errors that are fed back would grow without end, and the remedy; None where they do not.

        They do not where the error is smaller than what is encoded by a fixed share, as most codecs have it.
        """
        return None

    def entropy_bits(self, tensors: Tensors, common: Common = NOTHING) -> float | None:
        """Return the fewest bits that tensors as they arrive could take, by the codec's model; None without a model."""
        return None

    @abstractmethod
    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return a bound on the L2 norm of decode(encode(tensors)) - tensors; 0 for a lossless codec."""


class Kept(ABC):
    """Which entries of a manifest's tensors travel."""

    @property
    @abstractmethod
    def specs(self) -> tuple[Spec, ...]:
        """The kept values' manifest: each tensor under its own name, shape (number kept,), float32."""

    @abstractmethod
    def fill(self, values: Tensors) -> Tensors:
        """Return the whole manifest's tensors: the values (of ``specs``) in their places and 0 elsewhere."""


class Sparse(Codec):
    """A codec that keeps some entries, and leaves their values to a chain's next stage or sends them as float32."""

    changes_only = True

    @abstractmethod
    def split(self, tensors: Tensors, common: Common = NOTHING) -> tuple[bytes, Tensors]:
        """Return what says which entries are kept, and their values as ``Kept.specs`` has them.

        Raises:
            TensorMismatchError: as encode.
            UnsupportedError: as encode.
        """

    @abstractmethod
    def places(self, head: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Kept:
        """Read what ``split`` says of the entries.

        Raises:
            WireError: the bytes are no such thing for this manifest.
            UnsupportedError: as decode.
        """
