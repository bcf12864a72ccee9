"""Attack the mechanism: tell releases with one client from releases without, and bound epsilon from below."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm

from fedpeft.config import Privacy
from fedpeft.privacy.accounting import epsilon
from fedpeft.privacy.per_client import clipped
from fedpeft.privacy.randomness import gaussian, source
from fedpeft.tensors import Spec, Tensors

TRIALS, DELTA, CLIP, MISTAKE = 100_000, 1e-5, 0.7, 1e-3
CANARY = Tensors({"a": torch.full((2,), 1e6), "b": torch.full((3,), -1e6)})
"""An update far above the clip: the worst one client can do."""


def released(noise_multiplier: float, *, canary: bool) -> np.ndarray:
    """Return the releases' lengths along the canary, one a trial."""
    made = Privacy(unit="client", delta=DELTA, clip=CLIP, noise_multiplier=noise_multiplier)
    specs = [Spec(name=s.name, shape=(TRIALS, *s.shape), dtype="float32") for s in CANARY.manifest()]
    noise = gaussian(specs, noise_multiplier * CLIP, source(made, 0))
    sent = clipped(CANARY, CLIP)
    direction = {name: tensor.double() / CANARY.norm() for name, tensor in CANARY.items()}
    parts = [(noise[n].double() + canary * sent[n].double()).flatten(1) @ direction[n].flatten() for n in CANARY]
    return sum(parts[1:], start=parts[0]).numpy()


def lower_bound(with_canary: np.ndarray, without: np.ndarray) -> float:
    """Return an epsilon that the mechanism has at least, by Clopper-Pearson and the trade-off of two Gaussians."""
    hits, alarms = int((with_canary > CLIP / 2).sum()), int((without > CLIP / 2).sum())
    true = beta.ppf(MISTAKE / 2, hits, TRIALS - hits + 1)
    false = beta.ppf(1 - MISTAKE / 2, alarms + 1, TRIALS - alarms)
    mu = norm.ppf(true) - norm.ppf(false)

    def delta(e: float) -> float:
        return float(norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu))

    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > DELTA else (low, middle)
    return low


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 4.0])
def test_the_audit_finds_no_more_than_is_claimed_and_most_of_it_and_catches_a_shortfall(noise: float) -> None:
    claimed = epsilon(noise_multiplier=noise, sample_rate=1.0, steps=1, delta=DELTA)

    found = lower_bound(released(noise, canary=True), released(noise, canary=False))
    short = lower_bound(released(0.8 * noise, canary=True), released(0.8 * noise, canary=False))

    assert 0.8 * claimed <= found <= claimed
    assert short > claimed
