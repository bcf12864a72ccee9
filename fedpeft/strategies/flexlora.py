"""LoRA by the product: the clients' mean update, factored anew by its singular value decomposition.

Bai, Chen, Qian, Yao, Li: Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources
(2024), arXiv 2402.11505: sum_k p_k B_k A_k = U S V^T; its r leading directions are the next factors. Exact where the
rank of the mean is at most r, and the nearest product of rank r otherwise.

The decomposition is exact and never makes a matrix of the layer's size: QR of the stacked factors leaves a core of
K r x K r. One client gets its product back, not its factors. Published is split = "one_sided": A has orthonormal rows
and B all of the size, so that the step of the next round changes with it; balanced halves share it. Both differ from
the clients' own factors by a turn, and what a client's optimizer knew of them is lost.

With ``client_rank`` client k is sent the first r_k ranks, the leading directions: the nearest product of rank r_k.
Its B_k A_k is of those alone, so a round of low ranks only ends with a mean of low rank.

Up and down r_k (d_out + d_in) floats a pair. It needs every update of a round at once: K adapters of memory. Heads, and
slots that are no factor of a pair, are averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedpeft.adapters.base import Slot
from fedpeft.strategies.base import Stack, State
from fedpeft.strategies.held import require_pairs
from fedpeft.strategies.products import Split, recomputed
from fedpeft.strategies.ranked import Ranked
from fedpeft.strategies.ranks import RankOptions
from fedpeft.strategies.stacking import Stacking
from fedpeft.strategies.weighting import WeightingOptions

__all__ = ["FlexLora", "Options", "make"]


@final
class Options(RankOptions, WeightingOptions):
    """Options of FlexLoRA."""

    split: Split = "balanced"
    """Square roots of the singular values on both factors, or ("one_sided", as published) all on B."""


@final
@dataclass(frozen=True, kw_only=True)
class FlexLora(Ranked, Stacking):
    """The truncated decomposition of the mean product."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without A/B pairs, or with a pair of less rank than some client's.

        Raises:
            UnsupportedError: says which.
        """
        require_pairs(slots, strategy="flexlora", why="factors the product of each A/B pair anew")
        self.require(slots, strategy="flexlora")

    def apply(self, slots: Sequence[Slot], state: State, total: Stack) -> State:
        """Factor each pair anew and average the rest.

        Raises:
            RunError: the updates weigh nothing, so there is no mean.
        """
        options = self.options
        return recomputed(slots, state, total, weighting=options.weighting, split=options.split, keep=len)


def make(options: Options) -> FlexLora:
    """Return FlexLoRA."""
    return FlexLora(options=options)
