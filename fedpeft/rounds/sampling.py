"""Who takes part in a round: drawn from any population in memory of the cohort's size."""

from typing import Literal

import torch

from fedpeft import seeds
from fedpeft.privacy.randomness import Randomness, Repeatable

__all__ = ["draw_cohort", "draw_spares", "first_of_permutation"]

_MOST = 2**32 // 20
"""Entries of a permutation of which torch draws each from 32 bits."""
_CHUNK = 1 << 16
"""Chances drawn at once."""


def draw_cohort(
    num_clients: int,
    clients_per_round: int | None,
    *,
    seed: int,
    round_number: int,
    sampling: Literal["fixed", "poisson"] = "fixed",
    randomness: Randomness | None = None,
) -> tuple[int, ...]:
    """Return the round's clients in ascending order; all of them when clients_per_round is None.

    fixed: exactly so many, without replacement. poisson: each on its own with probability clients_per_round /
    num_clients, so perhaps none; the randomness, where given, takes the place of what seed and round make.
    """
    if clients_per_round is None or clients_per_round >= num_clients:
        return tuple(range(num_clients))
    generator = seeds.generator(seed, "cohort", round_number)
    if sampling == "poisson":
        return _poisson(num_clients, clients_per_round / num_clients, randomness or Repeatable(generator))
    return tuple(sorted(first_of_permutation(num_clients, clients_per_round, generator)))


def draw_spares(
    num_clients: int, clients_per_round: int | None, num_spares: int, *, seed: int, round_number: int
) -> tuple[int, ...]:
    """Return the clients drawn after a fixed round's own, ascending; fewer than asked for where there are no more."""
    if clients_per_round is None or clients_per_round >= num_clients or not num_spares:
        return ()
    most, generator = clients_per_round + num_spares, seeds.generator(seed, "cohort", round_number)
    return tuple(sorted(first_of_permutation(num_clients, most, generator)[clients_per_round:]))


def first_of_permutation(num_entries: int, most: int, generator: torch.Generator) -> list[int]:
    """Return the first entries of ``torch.randperm(num_entries, generator=generator)``, in memory of as many.

    Each place is exchanged with one drawn from it and those after it (Fisher, Yates; Durstenfeld 1964, Algorithm 235);
    only what was exchanged is kept. The draws are torch's own, 32 bits a place.

    Raises:
        ValueError: so many entries that torch would draw them otherwise.
    """
    if num_entries >= _MOST:
        raise ValueError(f"num_entries = {num_entries}: expected less than {_MOST}")
    moved: dict[int, int] = {}
    drawn = []
    for place, bits in enumerate(_bits(min(most, num_entries), generator)):
        other = place + bits % (num_entries - place)
        drawn.append(moved.get(other, other))
        moved[other] = moved.pop(place, place)
    return drawn


def _bits(number: int, generator: torch.Generator) -> list[int]:
    """Return so many draws of 32 bits: torch makes one of 64 from two of them, the first above the second."""
    pairs = torch.empty((number + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return [half for pair in pairs.tolist() for half in (pair >> 32 & 0xFFFFFFFF, pair & 0xFFFFFFFF)][:number]


def _poisson(num_clients: int, rate: float, randomness: Randomness) -> tuple[int, ...]:
    """Return who is drawn; the chances are those of one ``torch.rand`` over all clients."""
    drawn: list[int] = []
    for start in range(0, num_clients, _CHUNK):
        number = min(_CHUNK, num_clients - start)
        drawn += [start + place for place in (randomness.uniform(number) < rate).nonzero().flatten().tolist()]
    return tuple(drawn)
