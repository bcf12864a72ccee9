"""Codecs one after the other: each but the last says which entries it keeps, the next packs their values.

Layout: each head's length (8 bytes) and bytes, then what the last codec makes of the values that are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedpeft.codecs.base import NOTHING, Codec, Common, Kept, Sparse
from fedpeft.codecs.frame import Reader, number
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Spec, Tensors

__all__ = ["Chain", "chained"]


def chained(stages: Sequence[Codec]) -> Codec:
    """Return one codec for one or more stages.

    Raises:
        UnsupportedError: a stage before the last packs every entry, so nothing is left for the next; names it.
    """
    sparse = []
    for stage in stages[:-1]:
        if not isinstance(stage, Sparse):
            raise UnsupportedError(
                f"codec {stage.name} stands before {stages[-1].name} in a chain and leaves nothing for it to pack; "
                "put it last, after codecs such as top_k or random_k"
            )
        sparse.append(stage)
    return Chain(tuple(sparse), stages[-1]) if sparse else stages[-1]


@final
@dataclass(frozen=True)
class Chain(Codec):
    """Sparse codecs, and the codec that packs the values that they leave."""

    sparse: tuple[Sparse, ...]
    last: Codec

    changes_only = True

    @property
    def name(self) -> str:  # type: ignore[override]
        """The stages' names."""
        return "+".join(stage.name for stage in (*self.sparse, self.last))

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Pack float32 tensors.

        Raises:
            TensorMismatchError: a tensor is not float32, or holds a NaN or infinity.
            UnsupportedError: a stage needs something in common that was not given.
        """
        parts = []
        for stage in self.sparse:
            head, tensors = stage.split(tensors, common)
            parts += [number(len(head)), head]
        return b"".join([*parts, self.last.encode(tensors, common)])

    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest, stage by stage.

        Raises:
            WireError: the bytes are not an encoding of this manifest by this chain.
            TensorMismatchError: the manifest itself is not all float32.
            UnsupportedError: a stage needs something in common that was not given.
        """
        reader, kept = Reader(data, codec=self.name), list[Kept]()
        for stage in self.sparse:
            head = reader.take(reader.number(f"head of {stage.name}", most=len(data)), "head")
            kept.append(stage.places(bytes(head), kept[-1].specs if kept else manifest, common))
        tensors = self.last.decode(bytes(reader.rest()), kept[-1].specs, common)
        for places in reversed(kept):
            tensors = places.fill(tensors)
        return tensors

    def grows(self) -> str | None:
        """Return the first stage's reason there is."""
        return next((reason for stage in (*self.sparse, self.last) if (reason := stage.grows()) is not None), None)

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return the sum of the stages' bounds, each on what the stages before it leave."""
        bound = 0.0
        for stage in self.sparse:
            bound += stage.error_bound(tensors, common)
            tensors = stage.split(tensors, common)[1]
        return bound + self.last.error_bound(tensors, common)
