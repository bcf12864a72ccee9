"""LoRA averaging with B corrected, so that B A comes nearer to the mean of the clients' products.

Bian, Wang, Zhang, Xu: LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement (2024),
arXiv 2411.14961: with DW* = sum_k p_k B_k A_k, Abar and Bbar the plain means, clients are sent Abar and Bbar + DB,
DB = argmin S(DW*, (Bbar + DB) Abar) + lambda ||DB||. Public code has several readings of S; two are offered here, and
a run's results say which one made them.

ridge (default): S is the squared Frobenius distance, DB = R Abar^T (Abar Abar^T + lambda I)^-1 with R = DW* - Bbar Abar
and lambda relative to the mean eigenvalue of Abar Abar^T: its scale is the layer's, not the experimenter's. The error
is never above that of plain averaging. cosine: as published, S = 1 - cos over all entries of a module, with
lambda ||DB||_F^2, by gradient descent from zero; it repairs the direction and is blind to length. Where DW* or
Bbar Abar is zero to float32's precision there is no direction, and the plain means stand.

Only what lies in the rows of Abar can be repaired. Up and down r (d_out + d_in) floats a pair, as plain averaging. It
needs every update of a round at once: K adapters of memory. Heads, and slots without a pair, are averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedpeft.adapters.base import Pair, Slot, pairs
from fedpeft.config.base import Frozen
from fedpeft.strategies.base import ClientUpdate, Stack, State
from fedpeft.strategies.held import require_pairs
from fedpeft.strategies.products import Product, averaged, in_order, shares, stacked
from fedpeft.strategies.repair import cosine, ridge
from fedpeft.strategies.stacking import Stacking
from fedpeft.strategies.weighting import Weighting
from fedpeft.tensors import Tensors

__all__ = ["LoraFair", "Options", "make"]

_NUM_STEPS, _STEP_SIZE = 1000, 0.01
_TINY = 1e-7
"""Of the size its factors would allow: float32 keeps nothing of a product below it."""


@final
class Options(Frozen):
    """Options of LoRA-FAIR."""

    variant: Literal["ridge", "cosine"] = "ridge"
    """How near is measured: squared distance, solved exactly, or the published cosine, by descent."""
    regularization: float = Field(default=0.01, ge=0)
    """The weight lambda of ||DB||^2: of ridge relative to tr(A A^T) / r, of cosine absolute."""
    num_steps: int | None = Field(default=None, ge=1)
    """Gradient steps of cosine; 1000 when unset."""
    step_size: float | None = Field(default=None, gt=0)
    """Of cosine's descent, halved whenever a step would raise the objective; 0.01 when unset."""
    weighting: Weighting = "examples"
    """What a client counts for: its number of examples, or one."""

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, given: Any) -> Any:
        """Fill in cosine's defaults, so that results show them."""
        if not isinstance(given, dict) or given.get("variant") != "cosine":
            return given
        chosen = {name: value for name, value in given.items() if value is not None}
        return {"num_steps": _NUM_STEPS, "step_size": _STEP_SIZE} | chosen

    @model_validator(mode="after")
    def _with_effect(self) -> Self:
        if self.variant == "ridge" and (self.num_steps is not None or self.step_size is not None):
            raise ValueError("num_steps and step_size are for variant 'cosine'; leave them out for 'ridge'")
        return self


@final
@dataclass(frozen=True, kw_only=True)
class LoraFair(Stacking):
    """Federated averaging of both factors, with B corrected."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without A/B pairs.

        Raises:
            UnsupportedError: says so.
        """
        require_pairs(slots, strategy="lora_fair", why="corrects the factor B of each A/B pair")

    def apply(self, slots: Sequence[Slot], state: State, total: Stack) -> State:
        """Average everything, and correct each B; summed in float64, rounded once."""
        updates = in_order(total)
        mean = averaged(state, updates, self.options.weighting)
        steps = {pair.b.name: self._correction(pair, state, updates, mean) for pair in pairs(slots)}
        mended = mean.replace({name: mean[name] + step for name, step in steps.items()})
        return State(adapter=mended.to(torch.float32), memory=state.memory)

    def _correction(self, pair: Pair, state: State, updates: Sequence[ClientUpdate], mean: Tensors) -> Tensor:
        """Return DB, shape (d_out, r)."""
        options, weights = self.options, shares(updates, self.options.weighting)
        a, b = mean[pair.a.name], mean[pair.b.name]
        gram = a @ a.T
        missing = _missing(pair, updates, weights, a)
        if options.variant == "ridge":
            relative = float(gram.trace()) / len(gram)
            return ridge(missing, gram, penalty=options.regularization * relative)
        whole = stacked(pair, updates, weights, state.adapter)
        if _vanishes(whole) or _vanishes(Product(b=b, a=a)):
            return torch.zeros_like(b)
        return cosine(
            b,
            missing + b @ gram,
            gram,
            norm=whole.norm(),
            penalty=options.regularization,
            num_steps=options.num_steps or _NUM_STEPS,
            step_size=options.step_size or _STEP_SIZE,
        )


def make(options: Options) -> LoraFair:
    """Return LoRA-FAIR."""
    return LoraFair(options=options)


def _missing(pair: Pair, updates: Sequence[ClientUpdate], weights: Sequence[float], a: Tensor) -> Tensor:
    """Return R A^T (d_out, r), from R = sum_k p_k dB_k (dA_k - mean dA): small differences are never lost in B A."""
    turned = [update.delta[pair.a.name].to(torch.float64) @ a.T for update in updates]
    mean = sum((weight * matrix for weight, matrix in zip(weights, turned, strict=True)), torch.zeros_like(turned[0]))
    total = a.new_zeros(pair.b.shape)
    for update, weight, matrix in zip(updates, weights, turned, strict=True):
        total.addmm_(update.delta[pair.b.name].to(torch.float64), weight * (matrix - mean))
    return total


def _vanishes(product: Product) -> bool:
    return product.norm() <= _TINY * float(product.b.norm() * product.a.norm())
