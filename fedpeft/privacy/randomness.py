"""Where noise and secret draws come from, and the noise itself.

Secure: the keystream of ChaCha20 (RFC 8439) under a key of the operating system's, one for each release. A seeded
``torch.Generator`` will not do: the processor's keeps 32 bits of its seed, few enough to try them all, and who has
learnt some of what a Mersenne twister gave knows the rest. Noise is the sum of four Gaussians, halved, after a first
that is thrown away, which hides the low bits that give a value away (Holohan, Braghin 2021, arXiv 2107.10138; Opacus's
secure mode), each by Box and Muller's transform in float64 of 53 bits.
"""

import math
import secrets
from collections.abc import Iterable
from typing import Protocol, final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

from fedpeft import seeds
from fedpeft.config.privacy import Privacy
from fedpeft.tensors import Spec, Tensors

__all__ = ["Randomness", "Repeatable", "Secure", "gaussian", "source"]

_SUMMED = 4
_CHUNK = 2**15
"""Numbers made together; it bounds the memory and changes nothing."""


class Randomness(Protocol):
    """The randomness of one release."""

    def uniform(self, count: int) -> Tensor:
        """Return (count,) numbers in [0, 1), float64."""

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Return independent noise of this shape, float32, mean 0."""


@final
class Secure:
    """Bits that nobody can know or repeat."""

    def __init__(self) -> None:
        self._stream = Cipher(ChaCha20(secrets.token_bytes(32), bytes(16)), mode=None).encryptor()
        self._gaussians(1)

    def uniform(self, count: int) -> Tensor:
        """Return (count,) numbers in [0, 1), float64, of 53 bits each."""
        bits = np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64) >> np.uint64(11)
        return torch.from_numpy(bits * 2.0**-53)

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Return independent noise of this shape, float32, mean 0."""
        flat = torch.empty(math.prod(shape), dtype=torch.float32)
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK]
            part.copy_(self._gaussians(_SUMMED * len(part)).reshape(_SUMMED, -1).sum(0) * (std / _SUMMED**0.5))
        return flat.reshape(shape)

    def _gaussians(self, count: int) -> Tensor:
        """Return (count,) standard Gaussians, float64, two of each pair of uniform numbers; one of these is not 0."""
        pairs = -(-count // 2)
        radius = (-2.0 * (1.0 - self.uniform(pairs)).log()).sqrt()
        angle = 2.0 * math.pi * self.uniform(pairs)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


@final
class Repeatable:
    """Of a seed: for research alone, since whoever has the seed can take the noise away."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self, count: int) -> Tensor:
        """Return (count,) numbers in [0, 1), float64."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64)

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Return independent noise of this shape, float32, mean 0."""
        return torch.normal(0.0, std, shape, generator=self._generator)


def source(privacy: Privacy, root: int, *purpose: str | int) -> Randomness:
    """Return the randomness of one release: secure, or of root and purpose for research.

    Let the purpose name all that the release is made of, so that noise is never used twice over different inputs.
    """
    return Secure() if privacy.noise == "secure" else Repeatable(seeds.generator(root, "privacy", *purpose))


def gaussian(specs: Iterable[Spec], std: float, randomness: Randomness) -> Tensors:
    """Return independent noise of these shapes, float32, mean 0."""
    return Tensors((spec.name, randomness.gaussian(spec.shape, std)) for spec in specs)
