"""Where noise and secret draws come from, and the noise itself.

Gaussians by Opacus: in secure mode the sum of four, halved, after a first that is thrown away, which hides the low bits
that give a value away (Holohan, Braghin 2021, arXiv 2107.10138).
"""

import secrets
from collections.abc import Iterable

import torch

from fedpeft import seeds
from fedpeft.config.privacy import Privacy
from fedpeft.tensors import Spec, Tensors

__all__ = ["gaussian", "source"]


def source(privacy: Privacy, root: int, *purpose: str | int) -> torch.Generator:
    """Return a generator for one release: of the operating system's entropy, or of root and purpose for research.

    Let the purpose name all that the release is made of, so that noise is never used twice over different inputs.
    """
    if privacy.noise == "secure":
        return torch.Generator().manual_seed(secrets.randbits(63))
    return seeds.generator(root, "privacy", *purpose)


def gaussian(specs: Iterable[Spec], std: float, generator: torch.Generator, *, secure: bool) -> Tensors:
    """Return independent noise of these shapes, float32, mean 0."""
    from opacus.optimizers.optimizer import _generate_noise  # seconds, which a run without privacy need not wait for

    return Tensors((spec.name, _generate_noise(std, torch.zeros(spec.shape), generator, secure)) for spec in specs)
