"""The first ranks of every A/B pair: rows of A and columns of B, cut out for the wire and put back in place.

A pair's product is a sum over its ranks, B A = sum_j B[:, j] A[j]. Ranks that are zero in both factors add nothing to
it and have zero gradients, dA_j = B_j^T G and dB_j = G A_j^T, so a client that holds b of r ranks is one whose other
ranks are zero: it needs neither another model nor a mask. Heads, and slots that are no factor of a pair, stay whole.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from fedpeft.adapters.base import Slot, pairs
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Spec, Tensors, require_manifest

__all__ = [
    "RankOptions",
    "added",
    "extended",
    "first_of",
    "padded",
    "rank_axes",
    "rank_masks",
    "rank_of",
    "require_ranks",
    "require_zero_start",
    "sliced",
    "sliced_specs",
]


class RankOptions(Frozen):
    """What strategies share whose clients may hold fewer ranks than the server."""

    client_rank: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(default=None, min_length=1)
    """Client k trains the first ``client_rank[k % len]`` ranks of each pair: one entry a client, or a few that repeat;
    all ranks when unset. Each is at least 1 and at most the smallest rank among the pairs. The scale of a pair stays
    the adapter's own, that of its full rank (for lora alpha / r), whatever a client holds."""

    def rank_for(self, client: int) -> int | None:
        """Return how many ranks a client holds; None for all."""
        return self.client_rank[client % len(self.client_rank)] if self.client_rank else None


def rank_axes(slots: Iterable[Slot]) -> dict[str, int]:
    """Return factor name -> the axis that counts ranks: 0 of A (rank, d_in), 1 of B (d_out, rank)."""
    return {slot.name: axis for pair in pairs(slots) for slot, axis in ((pair.a, 0), (pair.b, 1))}


def rank_masks(slots: Iterable[Slot], *, rank: int | None, held: int = 0) -> dict[str, Tensor]:
    """Return factor name -> mask that is true in ranks ``[held:rank]`` and broadcasts; none where all ranks train."""
    if rank is None and not held:
        return {}
    masks = {}
    for pair in pairs(slots):
        for slot, axis in ((pair.a, 0), (pair.b, 1)):
            places = torch.arange(slot.shape[axis])
            kept = (places >= held) & (places < (len(places) if rank is None else rank))
            masks[slot.name] = kept.reshape(-1, 1) if axis == 0 else kept.reshape(1, -1)
    return masks


def rank_of(slots: Sequence[Slot], *, strategy: str) -> int:
    """Return the smallest rank among the pairs.

    Raises:
        UnsupportedError: there is no pair; names the strategy and what the adapter has instead.
    """
    if found := pairs(slots):
        return min(pair.a.shape[0] for pair in found)
    roles = ", ".join(sorted({slot.role for slot in slots if slot.travels})) or "none"
    raise UnsupportedError(
        f"strategy {strategy!r} trains the first ranks of A/B pairs, and this adapter has no pairs "
        f"(its roles: {roles}); use an adapter such as 'lora'"
    )


def require_ranks(slots: Sequence[Slot], ranks: Sequence[int], *, strategy: str, option: str) -> None:
    """Refuse ranks that some pair does not have.

    Raises:
        UnsupportedError: names the option, the value and the bound; or there is no pair.
    """
    most = rank_of(slots, strategy=strategy)
    for rank in ranks:
        if not 1 <= rank <= most:
            raise UnsupportedError(
                f"strategy {strategy!r}: {option} has {rank}, expected 1 to {most}, the smallest rank among the "
                "adapter's pairs; lower it or raise the adapter's rank"
            )


def require_zero_start(slots: Sequence[Slot], adapter: Tensors, *, strategy: str) -> None:
    """Refuse pairs that do not start at a product of zero: whoever holds fewer ranks would lack part of the base.

    Raises:
        UnsupportedError: names the pair and the remedy.
    """
    for pair in pairs(slots):
        if bool((adapter[pair.b.name] @ adapter[pair.a.name]).any()):
            raise UnsupportedError(
                f"strategy {strategy!r} gives clients fewer ranks than the server's, and {pair.b.group!r} starts at a "
                "product that stands for part of its weight; use an adapter that starts at zero, such as 'lora'"
            )


def sliced_specs(specs: Iterable[Spec], slots: Iterable[Slot], *, rank: int | None, held: int = 0) -> tuple[Spec, ...]:
    """Return the specs with A's cut to ``[held:rank]`` along their rows and B's along their columns.

    Raises:
        UnsupportedError: a pair has no such ranks.
    """
    axes = rank_axes(slots)
    return tuple(_cut(spec, axes[spec.name], rank, held) if spec.name in axes else spec for spec in specs)


def sliced(tensors: Tensors, slots: Iterable[Slot], *, rank: int | None, held: int = 0) -> Tensors:
    """Return contiguous ranks ``[held:rank]`` of each factor, of what stands in full; all else as it is.

    Raises:
        UnsupportedError: a pair has no such ranks.
    """
    if rank is None and not held:
        return tensors
    axes = rank_axes(slots)

    def cut(name: str, tensor: Tensor) -> Tensor:
        first, last = _bounds(name, tensor.shape[axes[name]], rank, held)
        return tensor.narrow(axes[name], first, last - first).contiguous()

    return Tensors((name, cut(name, tensor) if name in axes else tensor) for name, tensor in tensors.items())


def padded(
    tensors: Tensors, slots: Sequence[Slot], *, rank: int | None, held: int = 0, where: str = "ranks"
) -> Tensors:
    """Return slices ``[held:rank]`` in the shapes of their slots, zero in all other ranks; the inverse of ``sliced``.

    Raises:
        TensorMismatchError: a tensor is not that slice of its slot; names the first difference.
        UnsupportedError: a pair has no such ranks.
    """
    axes, whole = rank_axes(slots), {slot.name: slot.spec for slot in slots}
    specs = [whole.get(name, spec) for name, spec in zip(tensors, tensors.manifest(), strict=True)]
    require_manifest(tensors.manifest(), sliced_specs(specs, slots, rank=rank, held=held), where=where)
    if rank is None and not held:
        return tensors

    def put(name: str, tensor: Tensor) -> Tensor:
        after = whole[name].shape[axes[name]] - held - tensor.shape[axes[name]]
        return pad(tensor, (0, 0, held, after) if axes[name] == 0 else (held, after))

    return Tensors((name, put(name, tensor) if name in axes else tensor) for name, tensor in tensors.items())


def added(total: Tensors, tensors: Tensors) -> Tensors:
    """Return the sum of two sets of slices that begin at the first rank; the shorter counts as zero beyond its end.

    Shapes are the larger of both, axis by axis. The caller has checked each set against its slots.

    Raises:
        TensorMismatchError: a name is in one set alone; says which.
    """
    total, tensors = total.select(tensors), tensors.select(total)
    return Tensors(
        (name, _grown(total[name], tensor) + _grown(tensor, total[name])) for name, tensor in tensors.items()
    )


def first_of(whole: Tensors, like: Tensors) -> Tensors:
    """Return views of the first ranks of some tensors, in the names and shapes of slices that begin there."""
    return Tensors((name, whole[name][tuple(slice(size) for size in given.shape)]) for name, given in like.items())


def extended(slices: Tensors, whole: Tensors) -> Tensors:
    """Return slices that begin at the first rank in the shapes of the whole, zero in the ranks that are not theirs."""
    return Tensors((name, _grown(tensor, whole[name])) for name, tensor in slices.items())


def _grown(tensor: Tensor, other: Tensor) -> Tensor:
    missing = [max(0, theirs - own) for own, theirs in zip(tensor.shape, other.shape, strict=True)]
    return pad(tensor, [width for after in reversed(missing) for width in (0, after)]) if any(missing) else tensor


def _cut(spec: Spec, axis: int, rank: int | None, held: int) -> Spec:
    first, last = _bounds(spec.name, spec.shape[axis], rank, held)
    return Spec(name=spec.name, shape=(*spec.shape[:axis], last - first, *spec.shape[axis + 1 :]), dtype=spec.dtype)


def _bounds(name: str, size: int, rank: int | None, held: int) -> tuple[int, int]:
    last = size if rank is None else rank
    if not 0 <= held < last <= size:
        raise UnsupportedError(f"{name}: ranks {held + 1} to {last} of {size} are asked for; expected some of these")
    return held, last
