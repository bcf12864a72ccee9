"""A residual on frozen weights: the adapted weight is W + residual + scale * B @ A, for strategies that need more rank.

State.memory holds it dense, ``residual.<group>`` (d_out, d_in), and beside it the factors it is the product of,
``residual_B.<group>`` (d_out, q) and ``residual_A.<group>`` (q, d_in), for as long as q (d_out + d_in) < d_out d_in.
Scale and weights are in B.

Clients keep nothing between rounds and may have missed any, so each broadcast carries the whole residual: its factors
while there are any, else the matrix. Down, that is min(q (d_out + d_in), d_out d_in) floats a pair beside the adapter,
q the rank of all rounds so far; after the first it is what a method's table counts for one round. A server evaluates
with the bits that clients rebuild, unless a lossy codec lies between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.adapters.base import Pair, Slot, pairs
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.base import ClientUpdate, Stack, State, Strategy
from fedpeft.strategies.weighting import Weighting
from fedpeft.tensors import Spec, Tensors

__all__ = ["Merging", "dense", "grown", "manifest", "no_residual", "parts", "require_lora", "side_by_side", "truncated"]

Product = tuple[Tensor, Tensor]
"""B (d_out, q) and A (q, d_in), float64."""


@dataclass(frozen=True, kw_only=True)
class Merging(Strategy[Stack]):
    """A strategy that merges products into frozen weights, by a residual in its memory: abstract."""

    def init(self, slots: Sequence[Slot], adapter: Tensors) -> State:
        """Start without a residual."""
        return State(adapter=adapter, memory=no_residual(slots))

    def residual_parts(self, slots: Sequence[Slot], state: State) -> Tensors:
        """Send factors (d_out, q), (q, d_in), or the matrix where that is no more."""
        return parts(state.memory, slots)

    def residual_manifest(self, slots: Sequence[Slot], claimed: Sequence[Spec]) -> tuple[Spec, ...]:
        """Take factors of any rank that saves floats, or the matrix."""
        return manifest(slots, claimed)

    def residuals(self, slots: Sequence[Slot], parts: Tensors) -> Tensors:
        """Return group -> (d_out, d_in)."""
        return dense(slots, parts)


def require_lora(slots: Sequence[Slot], *, strategy: str) -> None:
    """Refuse an adapter that is more or less than LoRA's pairs; heads are welcome.

    Raises:
        UnsupportedError: names the strategy and what the adapter has.
    """
    paired = {pair.b.group for pair in pairs(slots)}
    own = [slot for slot in slots if slot.travels and slot.role != "head"]
    others = sorted({slot.role for slot in own if slot.group in paired and slot.role not in ("A", "B")})
    if others or not paired:
        have = f"more than pairs ({', '.join(others)})" if others else "no pairs"
        roles = ", ".join(sorted({slot.role for slot in own})) or "none"
        raise UnsupportedError(
            f"strategy {strategy!r} adds products of A/B pairs to frozen weights, and this adapter has {have} "
            f"(its roles: {roles}); use adapter 'lora'"
        )


def no_residual(slots: Sequence[Slot]) -> Tensors:
    """Return the memory before round 1: zeros (d_out, d_in), factors of rank 0."""
    return Tensors(
        (spec.name, torch.zeros(spec.shape)) for pair in pairs(slots) for spec in (_matrix(pair), *_factors(pair, 0))
    )


def grown(memory: Tensors, slots: Sequence[Slot], terms: Mapping[str, Product]) -> Tensors:
    """Return the memory with B @ A of each group added; terms are float64, and those that are zero are left out."""
    return Tensors(
        (name, tensor) for pair in pairs(slots) for name, tensor in _grown(memory, pair, *terms[pair.b.group])
    )


def parts(memory: Tensors, slots: Sequence[Slot]) -> Tensors:
    """Return what a client needs to rebuild the residual: factors, or the matrix where it has no more floats."""
    return memory.select(spec.name for pair in pairs(slots) for spec in _form(pair, memory.manifest()))


def manifest(slots: Sequence[Slot], claimed: Sequence[Spec]) -> tuple[Spec, ...]:
    """Return the parts a client takes: the form and rank that are claimed, as far as the claim is within bounds."""
    return tuple(spec for pair in pairs(slots) for spec in _form(pair, claimed))


def dense(slots: Sequence[Slot], sent: Tensors) -> Tensors:
    """Return group -> residual (d_out, d_in), float32, of parts; the product of factors is taken in float64."""
    return Tensors((pair.b.group, _dense(pair, sent)) for pair in pairs(slots))


def side_by_side(total: Stack, *, weighting: Weighting) -> tuple[tuple[ClientUpdate, ...], tuple[float, ...]]:
    """Return the updates in ascending client order, and what each weighs; weights sum to 1."""
    updates = tuple(sorted(total.updates, key=lambda update: update.client))
    counts = [float(update.num_examples) if weighting == "examples" else 1.0 for update in updates]
    return updates, tuple(count / sum(counts) for count in counts)


def truncated(product: Product, rank: int) -> Product:
    """Return the nearest product of at most this rank; the SVD is of the small core between two QR bases."""
    b, a = product
    if len(a) <= rank:
        return product
    (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, sigma, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ (u[:, :rank] * sigma[:rank]), vt[:rank] @ q_a.T


def _matrix(pair: Pair) -> Spec:
    return Spec(name=f"residual.{pair.b.group}", shape=(pair.b.shape[0], pair.a.shape[1]), dtype="float32")


def _factors(pair: Pair, rank: int) -> tuple[Spec, Spec]:
    b = Spec(name=f"residual_B.{pair.b.group}", shape=(pair.b.shape[0], rank), dtype="float32")
    a = Spec(name=f"residual_A.{pair.b.group}", shape=(rank, pair.a.shape[1]), dtype="float32")
    return b, a


def _form(pair: Pair, have: Sequence[Spec]) -> tuple[Spec, ...]:
    """Return the factors that are there, if they agree and have fewer floats than the matrix; else the matrix."""
    b, _ = _factors(pair, 0)
    rank = next((spec.shape[1] for spec in have if spec.name == b.name and len(spec.shape) == 2), None)
    if rank is None or not _fewer(pair, rank):
        return (_matrix(pair),)
    return _factors(pair, rank)


def _fewer(pair: Pair, rank: int) -> bool:
    """Whether factors have fewer floats than the matrix, and so a rank below both of its sides."""
    return sum(spec.num_elements for spec in _factors(pair, rank)) < _matrix(pair).num_elements


def _grown(memory: Tensors, pair: Pair, b: Tensor, a: Tensor) -> list[tuple[str, Tensor]]:
    kept = (b != 0).any(dim=0) & (a != 0).any(dim=1)
    b, a = b[:, kept], a[kept]
    matrix, (name_b, name_a) = _matrix(pair).name, (spec.name for spec in _factors(pair, 0))
    if name_b not in memory:
        return [(matrix, (memory[matrix].to(torch.float64) + b @ a).to(torch.float32))]
    b = torch.cat([memory[name_b].to(torch.float64), b], dim=1)
    a = torch.cat([memory[name_a].to(torch.float64), a])
    if not _fewer(pair, len(a)):
        return [(matrix, (b @ a).to(torch.float32))]
    b, a = b.to(torch.float32), a.to(torch.float32)
    return [(matrix, _product(b, a)), (name_b, b), (name_a, a)]


def _dense(pair: Pair, sent: Tensors) -> Tensor:
    b, a = _factors(pair, 0)
    return _product(sent[b.name], sent[a.name]) if b.name in sent else sent[_matrix(pair).name]


def _product(b: Tensor, a: Tensor) -> Tensor:
    return (b.to(torch.float64) @ a.to(torch.float64)).to(torch.float32)
