"""Several LoRA adapters of one shape as one: task arithmetic, or TIES, on the factors.

Task arithmetic, Ilharco et al. (2023), arXiv 2212.04089: sum_k w_k theta_k. TIES, Yadav, Tam, Choshen, Raffel, Bansal
(2023), arXiv 2306.01708: of each adapter's weighted entries keep the share of largest magnitude, over all its factors
together; elect each entry's sign by the sum over adapters, where that is 0 the sign most entries have; take the mean of
the entries left that have it. Factors are merged, as is usual, and the product of merged factors is not the merged
product. A's begin at random: adapters trained from different starts have little in common to be merged.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from fedpeft.codecs.selection import largest
from fedpeft.errors import InputError, TensorMismatchError
from fedpeft.report.folders import Folder, roles
from fedpeft.tensors import Tensors

__all__ = ["Method", "merged", "ties"]

Method = Literal["task_arithmetic", "ties"]
_SAME = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
_Floats = npt.NDArray[np.float64]


def merged(
    folders: Sequence[Folder], *, method: Method, weights: Sequence[float] | None = None, density: float = 0.2
) -> Folder:
    """Return the merged adapter, float32, with the first one's configuration.

    ``weights`` are one an adapter: each 1/K for task arithmetic and 1 for TIES when None. ``density`` is of TIES.

    Raises:
        InputError: adapters that differ, tensors that are no factors, or weights and density out of bounds.
    """
    share = 1.0 / len(folders) if method == "task_arithmetic" else 1.0
    weights = [share] * len(folders) if weights is None else weights
    _require(folders, weights, density)
    manifest = folders[0].tensors.to(torch.float32).manifest()
    flats = [weight * _flat(folder.tensors) for folder, weight in zip(folders, weights, strict=True)]
    total = np.sum(flats, axis=0) if method == "task_arithmetic" else ties(flats, density=density)
    ends = np.cumsum([spec.num_elements for spec in manifest])[:-1]
    parts = zip(manifest, np.split(total.astype(np.float32), ends), strict=True)
    tensors = Tensors((spec.name, torch.from_numpy(part.copy()).reshape(spec.shape)) for spec, part in parts)
    return Folder(folders[0].config, tensors.require_finite(where="merged adapter"))


def ties(vectors: Sequence[_Floats], *, density: float) -> _Floats:
    """Trim, elect signs, take the disjoint mean of flat vectors of one length."""
    stack = np.stack([_trimmed(vector, density) for vector in vectors])
    mass = stack.sum(axis=0)
    elected = np.sign(mass)
    elected[elected == 0] = np.sign(elected.sum()) or 1.0
    agreeing = np.where(np.sign(stack) == elected, stack, 0.0)
    return np.asarray(agreeing.sum(axis=0) / np.maximum(1, np.count_nonzero(agreeing, axis=0)))


def _trimmed(vector: _Floats, density: float) -> _Floats:
    kept = np.zeros_like(vector)
    places = largest(vector.astype(np.float32), min(vector.size, math.floor(density * vector.size + 0.5)))
    kept[places] = vector[places]
    return kept


def _require(folders: Sequence[Folder], weights: Sequence[float], density: float) -> None:
    if len(weights) != len(folders) or not all(map(math.isfinite, weights)):
        raise InputError(f"weights = {list(weights)}: expected {len(folders)} finite numbers, one an adapter")
    if not 0 < density <= 1:
        raise InputError(f"density = {density}: expected > 0 and <= 1")
    first = folders[0]
    if others := [name for name in first.tensors if name not in roles(first.tensors)]:
        raise InputError(f"tensor {others[0]!r} is no factor of LoRA, and only those begin at 0; merge plain LoRA")
    for folder in folders[1:]:
        for key in _SAME:
            if folder.config.get(key) != first.config.get(key):
                raise InputError(
                    f"{key} is {folder.config.get(key)!r} and {first.config.get(key)!r}; expected the same"
                )
        try:
            folder.tensors.to(torch.float32).require(
                first.tensors.to(torch.float32).manifest(), where="adapters differ"
            )
        except TensorMismatchError as error:
            raise InputError(str(error)) from error


def _flat(tensors: Tensors) -> _Floats:
    return np.concatenate([tensor.to(torch.float64).reshape(-1).numpy() for tensor in tensors.values()])
