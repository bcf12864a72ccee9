"""Whom an experiment asks in a round, and whom beside these."""

from fedpeft.errors import UnsupportedError
from fedpeft.privacy.randomness import source
from fedpeft.rounds.sampling import draw_cohort, draw_spares
from fedpeft.training.workbench import Workbench

__all__ = ["cohort_of", "spares_of"]


def cohort_of(bench: Workbench, num_clients: int, round_number: int) -> tuple[int, ...]:
    """Draw a round's clients; where privacy counts on their being unknown, from the mechanism's own randomness."""
    seed, rounds, privacy = bench.experiment.seed, bench.experiment.rounds, bench.experiment.privacy
    return draw_cohort(
        num_clients,
        rounds.clients_per_round,
        seed=seed,
        round_number=round_number,
        sampling=rounds.sampling,
        randomness=source(privacy, seed, "cohort", round_number) if privacy else None,
    )


def spares_of(bench: Workbench, num_clients: int, round_number: int) -> tuple[int, ...]:
    """Draw who is asked beyond the cohort.

    Raises:
        UnsupportedError: clients keep memories, and one that is not counted would go on from what nobody used.
    """
    experiment, rounds = bench.experiment, bench.experiment.rounds
    if rounds.spare_clients and bench.remembers():
        raise UnsupportedError(
            f"rounds.spare_clients = {rounds.spare_clients}: clients of strategy {experiment.strategy.name!r} keep "
            "memories, and a reply that is not counted would leave one behind; set it to 0"
        )
    return draw_spares(
        num_clients, rounds.clients_per_round, rounds.spare_clients, seed=experiment.seed, round_number=round_number
    )
