"""LoRA of another rank on each client: cut for it, padded with zeros on the server, weighted by what it learnt.

Cho, Liu, Xu, Fahrezi, Joshi: Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models (2024),
arXiv 2401.06432: client k trains the first r_k ranks of the global factors, and A <- sum_k p_k pad(A_k), B likewise,
with p_k proportional to ||B_k A_k||_F. The norm is one number a client, over all its pairs and with their scales; it is
taken through the r x r matrices B^T B and A A^T, never through the product. Heads, and slots that are no factor of a
pair, are averaged with the same weights.

Padding ends at the largest r_k of the round; ranks beyond it stay as they are, since a rank that is zero in both
factors never trains again. A rank that some clients of a round lack shrinks by their weight, as in the paper; with
``missing = "keep"`` they leave it alone. A client whose products are all zero weighs nothing under ``norm``; a round of
such clients alone counts them alike. With ``prune`` clients give up ranks of their own, by the paper's regulariser and
rule; see ``pruning``.

A round costs client k r_k (d_out + d_in) floats a pair both ways. The total of a round is one adapter: it streams.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, final

import torch
from pydantic import Field, model_validator

from fedpeft.adapters.base import Slot, pairs
from fedpeft.errors import RunError
from fedpeft.strategies.base import ClientUpdate, Directive, State, Strategy, WeightedSum
from fedpeft.strategies.pruning import Pruned
from fedpeft.strategies.ranks import RankOptions, added, extended, first_of, require_ranks, sliced
from fedpeft.strategies.weighting import moved
from fedpeft.tensors import Tensors

__all__ = ["HetLora", "Options", "make"]

_PRUNE_PENALTY = 0.01


@final
class Options(RankOptions):
    """Options of HetLoRA."""

    weighting: Literal["norm", "examples", "uniform"] = "norm"
    """What a client counts for: the norm of its products, its number of examples, or one."""
    missing: Literal["zero", "keep"] = "zero"
    """What a client says of a rank that it lacks: that it is zero, or that it has not changed."""
    prune: float | None = Field(default=None, gt=0, lt=1)
    """The share of its ranks to which a client falls back, for good, when the others shrank in its training; when unset
    clients keep their ranks."""
    prune_penalty: float | None = Field(default=None, ge=0)
    """Strength of the penalty that shrinks the ranks beyond that share; 0.01 when unset."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.missing == "keep" and self.client_rank is None and self.prune is None:
            raise ValueError("missing = 'keep' has no effect without client_rank or prune: clients hold all ranks")
        if self.prune_penalty is not None and self.prune is None:
            raise ValueError("prune_penalty has no effect without prune; set it or leave both out")
        return self


@final
@dataclass(frozen=True, kw_only=True)
class HetLora(Strategy[WeightedSum]):
    """The weighted mean of factors of unequal ranks."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without A/B pairs, or with a pair of less rank than some client's.

        Raises:
            UnsupportedError: says which.
        """
        require_ranks(slots, self.options.client_rank or (), strategy="hetlora", option="client_rank")

    def directive(self, slots: Sequence[Slot], state: State, *, round_number: int, client: int) -> Directive:
        """Train the ranks that this client holds."""
        return Directive(rank=self.options.rank_for(client))

    def period(self) -> int:
        """Return the length of client_rank."""
        return len(self.options.client_rank or (1,))

    def start(self) -> WeightedSum:
        """Return an empty sum."""
        return WeightedSum()

    def prepare(self, slots: Sequence[Slot], state: State, update: ClientUpdate) -> ClientUpdate:
        """Weigh the update; with ``zero``, return what the client holds in place of what it changed.

        Raises:
            TensorMismatchError: the update is not the slice that was asked for; names the first difference.
        """
        received = sliced(state.adapter.select(update.delta), slots, rank=update.directive.rank)
        update.delta.require(received.manifest(), where=f"update of client {update.client}")
        trained = received + update.delta
        weight = {"norm": _norm(trained, slots), "examples": float(update.num_examples), "uniform": 1.0}
        shown = trained if self.options.missing == "zero" else update.delta
        return replace(update, delta=shown, weight=weight[self.options.weighting])

    def accumulate(self, total: WeightedSum, update: ClientUpdate) -> WeightedSum:
        """Add weight * slice. Until one weighs more than nothing they count alike, and then those do not count."""
        if update.weight is None:
            raise RunError(f"update of client {update.client} has no weight: hetlora takes what its prepare returns")
        counted = replace(total, num_updates=total.num_updates + 1)
        if total.weight and not update.weight:
            return counted
        before = None if update.weight and not total.weight else total.tensors
        weighted = update.delta.to(torch.float64) * (update.weight or 1.0)
        tensors = weighted if before is None else added(before, weighted)
        return replace(counted, tensors=tensors, weight=total.weight + update.weight)

    def apply(self, slots: Sequence[Slot], state: State, total: WeightedSum) -> State:
        """Set the ranks that somebody trained to their mean, or move them by it.

        Raises:
            RunError: there are no updates, so there is no mean.
        """
        if total.tensors is None:
            raise RunError(f"no mean of {total.num_updates} updates: expected at least 1")
        step = total.tensors.map(lambda tensor: tensor / (total.weight or total.num_updates))
        if self.options.missing == "zero":
            step = step - first_of(state.adapter, step).to(torch.float64)
        return State(adapter=moved(state.adapter, extended(step, state.adapter)), memory=state.memory)


def make(options: Options) -> Strategy[Any]:
    """Return HetLoRA."""
    if options.prune is None:
        return HetLora(options=options)
    strength = _PRUNE_PENALTY if options.prune_penalty is None else options.prune_penalty
    return Pruned(within=HetLora(options=options), share=options.prune, strength=strength)


def _norm(adapter: Tensors, slots: Sequence[Slot]) -> float:
    """Return the Frobenius norm of all products scale * B A together: ||B A||^2 = <B^T B, A A^T>."""
    square = 0.0
    for pair in pairs(slots):
        a, b = (adapter[slot.name].to(torch.float64) for slot in (pair.a, pair.b))
        square += pair.scale**2 * float(((b.T @ b) * (a @ a.T)).sum())
    return math.sqrt(max(square, 0.0))
