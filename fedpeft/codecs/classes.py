"""The classes of tensors that are made sparse apart, so that none starves another: A, B, head, and all others.

B is large while A is small early in training (A's gradient goes through B, which begins at 0), and a head is larger
than both; one cut over all of them would send little else than the largest class. A class is its tensors flattened, one
after the other, in the manifest's order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Literal, final

import numpy as np
import torch
from pydantic import Field

from fedpeft.codecs.base import Common, Kept
from fedpeft.codecs.frame import seal
from fedpeft.codecs.selection import Floats, Places, scatter
from fedpeft.config.base import Frozen
from fedpeft.tensors import Spec, Tensors

__all__ = [
    "CLASSES",
    "Class",
    "ClassName",
    "KeptInClasses",
    "Share",
    "Sparsity",
    "class_seal",
    "classes",
    "entropy_bits",
    "flat_class",
    "unflattened",
]

ClassName = Literal["A", "B", "head", "other"]
CLASSES: tuple[ClassName, ...] = ("A", "B", "head", "other")
Share = Annotated[float, Field(ge=0, le=1)]


class Sparsity(Frozen):
    """How much of each class is kept."""

    density: float = Field(default=0.05, ge=0, le=1)
    """Share of the entries that are kept of each class: the nearest whole number, and at least one unless it is 0."""
    densities: dict[ClassName, Share] = Field(default_factory=dict)
    """Other shares for some classes: A, B, head, other."""

    def num_kept(self, group: "Class") -> int:
        """Return how many entries of a class are kept at most."""
        share = self.densities.get(group.name, self.density)
        least = 1 if share and group.num_entries else 0
        return max(least, min(group.num_entries, math.floor(share * group.num_entries + 0.5)))

    def grows(self) -> str | None:
        """Return why fed-back errors would grow: a class of which nothing is ever sent."""
        if all([self.density, *self.densities.values()]):
            return None
        return "a class with density 0 is never sent; give it a density > 0"


@final
@dataclass(frozen=True)
class Class:
    """The tensors of one class, in the manifest's order."""

    name: ClassName
    specs: tuple[Spec, ...]

    @property
    def num_entries(self) -> int:
        """Number of scalars in the class."""
        return sum(spec.num_elements for spec in self.specs)

    @property
    def ends(self) -> list[int]:
        """Where each tensor begins in the flat class, and where the last one ends."""
        return list(accumulate((spec.num_elements for spec in self.specs), initial=0))


def classes(manifest: Sequence[Spec], common: Common) -> tuple[Class, ...]:
    """Return the classes that have tensors, in the order of CLASSES."""
    sorted_in: dict[str, list[Spec]] = {name: [] for name in CLASSES}
    for spec in manifest:
        role = common.roles.get(spec.name, "other")
        sorted_in[role if role in sorted_in else "other"].append(spec)
    return tuple(Class(name, tuple(sorted_in[name])) for name in CLASSES if sorted_in[name])


def class_seal(codec: str, options: Frozen, manifest: Sequence[Spec], common: Common, *more: int) -> bytes:
    """Return a seal that binds which tensor is of which class too."""
    return seal(
        codec, options, manifest, *more, *(f"{g.name}: {s.name}" for g in classes(manifest, common) for s in g.specs)
    )


def flat_class(tensors: Tensors, group: Class) -> Floats:
    """Return a class as one flat array; a view where it is one tensor."""
    parts = [tensors[spec.name].detach().cpu().contiguous().reshape(-1).numpy() for spec in group.specs]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def unflattened(manifest: Sequence[Spec], groups: Sequence[tuple[Class, Floats]]) -> Tensors:
    """Return the manifest's tensors as views of their flat classes."""
    found = {
        spec.name: torch.from_numpy(flat[start:end]).reshape(spec.shape)
        for group, flat in groups
        for spec, (start, end) in zip(group.specs, pairwise(group.ends), strict=True)
    }
    return Tensors((spec.name, found[spec.name]) for spec in manifest)


def entropy_bits(tensors: Tensors, common: Common, *, each: int, shared: int = 0) -> float:
    """Return the sum over classes of n H(k/n) + each k + shared bits, where k of n entries are not 0."""
    total = 0.0
    for group in classes(tensors.manifest(), common):
        n, k = group.num_entries, int(np.count_nonzero(flat_class(tensors, group)))
        surprise = sum(count * math.log2(n / count) for count in (k, n - k) if count)
        total += surprise + each * k + shared
    return total


@final
@dataclass(frozen=True)
class KeptInClasses(Kept):
    """The kept places of each class, ascending."""

    manifest: tuple[Spec, ...]
    groups: tuple[tuple[Class, Places], ...]

    @property
    def specs(self) -> tuple[Spec, ...]:
        """The kept values' manifest: each tensor under its own name, shape (number kept,), float32."""
        cuts = (
            (spec, end - start)
            for group, places in self.groups
            for spec, (start, end) in zip(group.specs, pairwise(np.searchsorted(places, group.ends)), strict=True)
        )
        num_kept = {spec.name: int(count) for spec, count in cuts}
        return tuple(Spec(name=s.name, shape=(num_kept[s.name],), dtype="float32") for s in self.manifest)

    def take(self, tensors: Tensors) -> Tensors:
        """Return the kept values of tensors of the manifest."""
        kept = classes(self.specs, Common(roles={s.name: g.name for g, _ in self.groups for s in g.specs}))
        flats = [flat_class(tensors, group)[places] for group, places in self.groups]
        return unflattened(self.specs, list(zip(kept, flats, strict=True)))

    def fill(self, values: Tensors) -> Tensors:
        """Return the whole manifest's tensors: the values in their places and 0 elsewhere."""
        flats = []
        for group, places in self.groups:
            flat = np.zeros(group.num_entries, np.float32)
            scatter(flat, places, flat_class(values, group))
            flats.append((group, flat))
        return unflattened(self.manifest, flats)
