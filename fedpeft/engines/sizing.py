"""How many worker processes a run gets on this machine."""

import os
from pathlib import Path

from fedpeft.config import Compute, Experiment, Simulation
from fedpeft.errors import UnsupportedError

__all__ = ["kilobytes", "likely_several", "num_workers"]


def num_workers(experiment: Experiment, *, num_clients: int) -> int:
    """Return how many processes train side by side: never more than a round's clients; 1 is this process alone.

    Raises:
        UnsupportedError: several are asked for on a GPU, or shares of GPUs.
    """
    asked, device = experiment.simulation.workers, experiment.compute.device
    rounds = experiment.rounds
    drawn = num_clients if rounds.sampling == "poisson" else rounds.clients_per_round or num_clients
    if (share := experiment.simulation.gpus_per_client) is not None:
        raise UnsupportedError(
            f"simulation.gpus_per_client = {share}: one process trains on compute.device = {device!r}, and shares it "
            "with no other; leave it out, or use the flower engine"
        )
    if device != "cpu" and asked not in (1, "auto"):
        raise UnsupportedError(
            f"simulation.workers = {asked} with compute.device = {device!r}: worker processes share a base model in "
            "main memory and not on a GPU; leave it out, or use the flower engine"
        )
    if device != "cpu":
        return 1
    if isinstance(asked, int):
        return min(drawn, asked)
    return max(1, min(drawn, _by_cores(experiment.compute), _by_memory()))


def likely_several(simulation: Simulation, compute: Compute) -> bool:
    """Tell before anything is read whether worker processes will be wanted, unless there are too few clients."""
    asked = simulation.workers
    return compute.device == "cpu" and (_by_cores(compute) if asked == "auto" else asked) > 1


def _by_cores(compute: Compute) -> int:
    threads = compute.num_threads
    return 1 if isinstance(threads, str) else _cores() // threads


def _cores() -> int:
    """Return the cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_memory() -> int:
    """Return how many processes of this one's size fit into what is free; 1 where the system does not tell.

    A worker is smaller, since it has no copy of the base model, and needs room for its activations, which this
    process has not shown yet.
    """
    free, own = kilobytes(Path("/proc/meminfo"), "MemAvailable"), kilobytes(Path("/proc/self/status"), "VmRSS")
    return free // own if free and own else 1


def kilobytes(file: Path, key: str) -> int:
    """Return a number of one of Linux's files on memory; 0 where there is none."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)
