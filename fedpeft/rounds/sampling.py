"""Who takes part in a round."""

import torch

from fedpeft import seeds

__all__ = ["draw_cohort"]


def draw_cohort(num_clients: int, clients_per_round: int | None, *, seed: int, round_number: int) -> tuple[int, ...]:
    """Return the round's clients in ascending order, drawn uniformly without replacement; all of them when None."""
    if clients_per_round is None or clients_per_round >= num_clients:
        return tuple(range(num_clients))
    generator = seeds.generator(seed, "cohort", round_number)
    drawn = torch.randperm(num_clients, generator=generator)[:clients_per_round]
    return tuple(sorted(drawn.tolist()))
