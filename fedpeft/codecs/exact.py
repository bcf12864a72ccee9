"""Float32 values without names or header: how a sparse codec that ends a chain sends what it kept."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from fedpeft.codecs.base import NOTHING, Codec, Common
from fedpeft.codecs.frame import Reader
from fedpeft.tensors import Spec, Tensors, raw

__all__ = ["Exact"]


@final
class Exact(Codec):
    """The values' bits in the manifest's order, and nothing else; NaN and infinity are refused on arrival."""

    name = "exact"

    def encode(self, tensors: Tensors, common: Common = NOTHING) -> bytes:
        """Pack float32 tensors."""
        return b"".join(map(raw, tensors.values()))

    def decode(self, data: bytes, manifest: Sequence[Spec], common: Common = NOTHING) -> Tensors:
        """Unpack into exactly this manifest.

        Raises:
            WireError: another length, or a number that is not finite.
        """
        reader = Reader(data, codec=self.name)
        flats = [(spec, reader.floats(spec.num_elements, "values")) for spec in manifest]
        reader.end()
        return Tensors((spec.name, torch.from_numpy(np.array(flat)).reshape(spec.shape)) for spec, flat in flats)

    def error_bound(self, tensors: Tensors, common: Common = NOTHING) -> float:
        """Return 0."""
        return 0.0
