"""The clients' mean product sum_k p_k B_k A_k of an A/B pair, kept as factors: what several strategies repair or redo.

Side by side, B = [p_1 B_1 ... p_K B_K] and A = [A_1; ...; A_K] have this product; the weight is on one side only. No
matrix of the layer's size is ever made, clients' ranks may differ, and all of it is float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from fedpeft.adapters.base import Pair, Slot, pairs
from fedpeft.seeds import generator
from fedpeft.strategies.base import ClientUpdate, Stack, State, WeightedSum
from fedpeft.strategies.weighting import Weighting, mean_delta
from fedpeft.tensors import Tensors

__all__ = ["Keep", "Product", "Split", "Svd", "averaged", "decompose", "in_order", "recomputed", "shares", "stacked"]

Split = Literal["balanced", "one_sided"]
"""Where the singular values go: their square roots on both factors, or all of them on B over orthonormal rows of A."""
Keep = Callable[[Tensor], int]
"""Singular values of the whole mean product, descending -> how many of them are wanted at most."""

_EPSILON = torch.finfo(torch.float64).eps


@final
@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix b @ a of shape (d_out, d_in), by factors of any inner width R."""

    b: Tensor
    """Shape (d_out, R), float64."""
    a: Tensor
    """Shape (R, d_in), float64."""

    def norm(self) -> float:
        """Return the Frobenius norm of b @ a, by two R x R matrices."""
        return float((self.b.T @ self.b).mul(self.a @ self.a.T).sum().clamp(min=0.0).sqrt())


@final
@dataclass(frozen=True, kw_only=True)
class Svd:
    """The singular values of a product, descending, and its singular vectors with their signs fixed."""

    u: Tensor
    """Shape (d_out, m), orthonormal columns; the largest entry of each is positive."""
    s: Tensor
    """Shape (m,), not negative."""
    vt: Tensor
    """Shape (m, d_in), orthonormal rows."""


def in_order(total: Stack) -> tuple[ClientUpdate, ...]:
    """Return the updates in ascending client order, so that the order of arrival cannot matter to a bit."""
    return tuple(sorted(total.updates, key=lambda update: update.client))


def shares(updates: Sequence[ClientUpdate], weighting: Weighting) -> tuple[float, ...]:
    """Return p_k of each update; they sum to one."""
    counts = _counts(updates, weighting)
    return tuple(count / sum(counts) for count in counts)


def averaged(state: State, updates: Sequence[ClientUpdate], weighting: Weighting) -> Tensors:
    """Return the plain mean of the clients' adapters, float64: factor by factor, as federated averaging has it.

    Raises:
        RunError: the updates weigh nothing, so there is no mean.
        TensorMismatchError: the updates are not of this adapter; names the first difference.
    """
    weights = _counts(updates, weighting)
    sums = Tensors((name, _sum([update.delta[name] for update in updates], weights)) for name in updates[0].delta)
    mean = mean_delta(WeightedSum(tensors=sums, weight=sum(weights), num_updates=len(updates)))
    return state.adapter.to(torch.float64) + mean


def stacked(
    pair: Pair, updates: Sequence[ClientUpdate], weights: Sequence[float], start: Tensors | None = None
) -> Product:
    """Return the weighted sum over clients of B_k A_k, where these are the deltas added to ``start``'s factors.

    Without ``start`` the updates' own tensors are the factors, (d_out, r_k) and (r_k, d_in) of any rank. Weights need
    not sum to one: where clients scale differently, s_k / s belongs in them.
    """
    b = [update.delta[pair.b.name].to(torch.float64) for update in updates]
    a = [update.delta[pair.a.name].to(torch.float64) for update in updates]
    if start is not None:
        b = [start[pair.b.name].to(torch.float64) + factor for factor in b]
        a = [start[pair.a.name].to(torch.float64) + factor for factor in a]
    weighted = [factor * weight for factor, weight in zip(b, weights, strict=True)]
    return Product(b=torch.cat(weighted, dim=1), a=torch.cat(a))


def decompose(product: Product) -> Svd:
    """Return the SVD of b @ a from its QR cores: m = min(d_out, d_in, R) values, exact, at a cost linear in d.

    b = Q_b R_b and a^T = Q_a R_a; the SVD of the small R_b R_a^T, turned by Q_b and Q_a, is that of the product.
    """
    q_b, r_b = torch.linalg.qr(product.b)
    q_a, r_a = torch.linalg.qr(product.a.T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    u, vt = q_b @ u, vt @ q_a.T
    largest = u.gather(0, u.abs().argmax(dim=0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(torch.float64)
    return Svd(u=u * sign, s=s, vt=vt * sign.T)


def recomputed(
    slots: Sequence[Slot], state: State, total: Stack, *, weighting: Weighting, split: Split, keep: Keep
) -> State:
    """Return the state with each pair factored anew from the clients' mean product; all else is averaged plainly.

    Directions beyond those kept have zero columns in B over seeded Gaussian rows in A, so that training can use them
    and the product does not see them. A pair that no client moved stays as it is, to the bit.

    Raises:
        RunError: the updates weigh nothing, so there is no mean.
        TensorMismatchError: the updates are not of this adapter; names the first difference.
    """
    updates = in_order(total)
    mean = averaged(state, updates, weighting)
    weights = shares(updates, weighting)
    factors: dict[str, Tensor] = {}
    for pair in pairs(slots):
        if any(bool(update.delta[slot.name].any()) for update in updates for slot in (pair.a, pair.b)):
            svd = decompose(stacked(pair, updates, weights, state.adapter))
            b, a = _factors(pair, svd, split=split, num_kept=min(keep(svd.s), _rank(svd), pair.a.shape[0]))
            factors |= {pair.b.name: b, pair.a.name: a}
    return State(adapter=mean.replace(factors).to(torch.float32), memory=state.memory)


def _sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def _counts(updates: Sequence[ClientUpdate], weighting: Weighting) -> list[float]:
    return [float(update.num_examples) if weighting == "examples" else 1.0 for update in updates]


def _factors(pair: Pair, svd: Svd, *, split: Split, num_kept: int) -> tuple[Tensor, Tensor]:
    """Return B (d_out, r) and A (r, d_in) of the leading directions, with the pair's own rank r."""
    rank, d_in = pair.a.shape
    u, s, vt = svd.u[:, :num_kept], svd.s[:num_kept], svd.vt[:num_kept]
    on_b, on_a = (s.sqrt(), s.sqrt()) if split == "balanced" else (s, torch.ones_like(s))
    spare = torch.randn((rank, d_in), generator=generator(0, "spare", pair.a.name), dtype=torch.float64) / d_in**0.5
    zeros = u.new_zeros(u.shape[0], rank - num_kept)
    return torch.cat([u * on_b, zeros], dim=1), torch.cat([on_a[:, None] * vt, spare[num_kept:]])


def _rank(svd: Svd) -> int:
    """Return how many singular values are more than rounding."""
    noise = max(svd.u.shape[0], svd.vt.shape[1]) * _EPSILON * float(svd.s[0])
    return int((svd.s > noise).sum())
