"""Who takes part in a round."""

from typing import Literal

import torch

from fedpeft import seeds
from fedpeft.privacy.randomness import Randomness, Repeatable

__all__ = ["draw_cohort", "draw_spares"]


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
    num_clients, so perhaps none. The randomness, where given, takes the place of what seed and round make.
    """
    if clients_per_round is None or clients_per_round >= num_clients:
        return tuple(range(num_clients))
    generator = seeds.generator(seed, "cohort", round_number)
    if sampling == "poisson":
        chances = (randomness or Repeatable(generator)).uniform(num_clients)
        return tuple((chances < clients_per_round / num_clients).nonzero().flatten().tolist())
    order = (
        randomness.uniform(num_clients).argsort() if randomness else torch.randperm(num_clients, generator=generator)
    )
    drawn = order[:clients_per_round]
    return tuple(sorted(drawn.tolist()))


def draw_spares(
    num_clients: int, clients_per_round: int | None, num_spares: int, *, seed: int, round_number: int
) -> tuple[int, ...]:
    """Return the clients drawn after a fixed round's own, ascending; fewer than asked for where there are no more."""
    if clients_per_round is None or clients_per_round >= num_clients or not num_spares:
        return ()
    drawn = torch.randperm(num_clients, generator=seeds.generator(seed, "cohort", round_number))
    return tuple(sorted(drawn[clients_per_round : clients_per_round + num_spares].tolist()))
