"""Distributed noise on the client: its update cut to the clip, and its share of the noise added, before it is sent.

Truex et al. (2019), arXiv 1812.03224, divide the noise so; here by the fewest clients whose sum is released, so that
whoever drops out above that number leaves enough (``privacy.mechanism``).
"""

from fedpeft.privacy.per_client import clipped
from fedpeft.privacy.randomness import gaussian, source
from fedpeft.tensors import Tensors
from fedpeft.timing import timed
from fedpeft.training.workbench import Workbench

__all__ = ["hidden"]


@timed("privacy")
def hidden(bench: Workbench, delta: Tensors, *, client: int, round_number: int) -> Tensors:
    """Return what the client may send: the change itself, or with its share of the noise where that is asked for.

    Reproducible noise is named by the change it is added to, so that no other change ever has the same.
    """
    mechanism = bench.mechanism
    if mechanism is None or mechanism.shares is None:
        return delta
    cut = clipped(delta, mechanism.privacy.clip)
    randomness = source(mechanism.privacy, bench.experiment.seed, "share", client, round_number, cut.digest())
    return cut + gaussian(cut.manifest(), mechanism.share_std, randomness)
