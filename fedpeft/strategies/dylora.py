"""LoRA that is good at every rank: all clients of a round train the first b of R ranks, b drawn anew each round.

Valipour, Rezagholizadeh, Kobyzev, Ghodsi: DyLoRA: Parameter-Efficient Tuning of Pretrained Models using Dynamic
Search-Free Low-Rank Adaptation (2022), arXiv 2210.07558: delta W = (alpha / b) B[:, :b] A[:b], with b uniform on
{min_rank, ..., R}. The paper draws b in each step; here one b holds for all clients and steps of a round. So no client
touches, sends or receives a rank beyond b, the mean has the same number of clients behind each entry, and b tells
nothing of anyone: it comes from the option ``seed`` and the round's number, which everybody knows. It does not come
from the experiment's own seed; experiments that differ in that alone train the same ranks in the same rounds.

The factor is R / b times the adapter's own scale, which for lora is alpha / R: rank 1 runs at R times the scale of
full rank, so choose alpha for b = R. The server evaluates all R ranks at the adapter's own scale; clients that evaluate
do so at the round's rank. Ranks beyond b keep their bits on the server.

A round costs b (d_out + d_in) floats a pair both ways; with ``frozen``, d_out + d_in up. Heads, and slots that are no
factor of a pair, train and travel whole. The total of a round is one adapter, however many clients: it streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from pydantic import Field

from fedpeft import seeds
from fedpeft.adapters.base import Slot, pairs
from fedpeft.errors import UnsupportedError
from fedpeft.strategies.base import ClientUpdate, Directive, State
from fedpeft.strategies.ranks import padded, rank_of, require_ranks
from fedpeft.strategies.weighting import Averaging, WeightingOptions

__all__ = ["DyLora", "Options", "make"]


@final
class Options(WeightingOptions):
    """Options of DyLoRA."""

    min_rank: int = Field(default=1, ge=1)
    """The least rank that is drawn; the most is the adapter's own."""
    frozen: bool = False
    """Train the last of the b ranks alone and hold those before it still, which is cheaper on the client and up."""
    seed: int = Field(default=0, ge=0)
    """Which sequence of ranks; public."""


@final
@dataclass(frozen=True, kw_only=True)
class DyLora(Averaging):
    """Federated averaging of the first ranks."""

    options: Options

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter without A/B pairs, with pairs of several ranks, or of less rank than is drawn.

        Raises:
            UnsupportedError: says which.
        """
        require_ranks(slots, [self.options.min_rank], strategy="dylora", option="min_rank")
        if len(ranks := {pair.a.shape[0] for pair in pairs(slots)}) > 1:
            raise UnsupportedError(
                f"strategy 'dylora' draws one rank for all pairs, and this adapter's have ranks {sorted(ranks)}; "
                "give them one, without a rank_pattern"
            )

    def rescales(self) -> bool:
        """Each rank has its scale."""
        return True

    def directive(self, slots: Sequence[Slot], state: State, *, round_number: int, client: int) -> Directive:
        """Train the first b ranks at R / b times the scale, or the last of these; the same b for every client."""
        most = rank_of(slots, strategy="dylora")
        generator = seeds.generator(self.options.seed, "dylora", round_number)
        rank = int(torch.randint(self.options.min_rank, most + 1, (), generator=generator))
        return Directive(rank=rank, held=rank - 1 if self.options.frozen else 0, scale=most / rank)

    def period(self) -> int:
        """Return 1: all clients are asked the same."""
        return 1

    def prepare(self, slots: Sequence[Slot], state: State, update: ClientUpdate) -> ClientUpdate:
        """Return the update in full size, zero in the ranks that did not train.

        Raises:
            TensorMismatchError: the update is not the slice that was asked for; names the first difference.
        """
        asked, where = update.directive, f"update of client {update.client}"
        return replace(update, delta=padded(update.delta, slots, rank=asked.rank, held=asked.held, where=where))


def make(options: Options) -> DyLora:
    """Return DyLoRA."""
    return DyLora(options=options)
