"""Secure noise against its definition by hand, against the normal law, and against everybody's seeds."""

import json
import os
import random
import secrets
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from scipy import stats

from fedpeft.config import Privacy
from fedpeft.privacy.randomness import Secure, source


def privacy(noise: str) -> Privacy:
    return Privacy.model_validate({"unit": "client", "delta": 1e-5, "clip": 1.0, "epsilon": 1.0, "noise": noise})


def uniforms(stream: Any, count: int) -> np.ndarray:
    words = np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8")
    return np.array([int(word) // 2**11 for word in words]) / 2.0**53


def box_muller(stream: Any, count: int) -> np.ndarray:
    pairs = (count + 1) // 2
    radius, angle = np.sqrt(-2 * np.log(1 - uniforms(stream, pairs))), 2 * np.pi * uniforms(stream, pairs)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def test_noise_is_half_the_sum_of_four_gaussians_of_the_keys_stream_after_one_that_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = bytes(range(32))
    monkeypatch.setattr(secrets, "token_bytes", lambda count: key[:count])
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    box_muller(stream, 1)
    by_hand = [box_muller(stream, 4 * 6).reshape(4, 6).sum(0) / 2 for _ in range(2)]

    found = Secure()
    for expected in by_hand:
        got = found.gaussian((2, 3), 1.7)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy().ravel(), 1.7 * expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.uniform(9).numpy(), uniforms(stream, 9))
    assert Secure().gaussian((), 1.0).shape == ()
    assert Secure().gaussian((0, 3), 1.0).shape == (0, 3)


def test_a_million_draws_are_normal_and_unlike_their_neighbours() -> None:
    drawn = Secure().gaussian((1000, 1000), 1.0).numpy().ravel().astype(float)
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    assert stats.kstest(Secure().uniform(100_000).numpy(), "uniform").pvalue > 1e-6
    for lag in (1, 2, 2**15 // 2, 2**15, 2**17):
        assert abs(np.corrcoef(drawn[lag:], drawn[:-lag])[0, 1]) < 0.005


def first_of_each_round(rounds: int) -> list[tuple[float, ...]]:
    """Return how the noise of so many releases begins, every global seed being the same."""
    found = []
    for _ in range(rounds):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        found.append(tuple(source(privacy("secure"), 0, "round", 1).gaussian((2,), 1.0).tolist()))
    return found


def test_two_processes_and_a_thousand_rounds_share_no_noise_whatever_is_seeded() -> None:
    read, write = os.pipe()
    if not (child := os.fork()):  # pragma: no cover - the other process
        os.write(write, json.dumps(first_of_each_round(500)).encode())
        os._exit(0)
    mine = first_of_each_round(500)
    os.close(write)
    with os.fdopen(read) as file:
        theirs = [tuple(prefix) for prefix in json.load(file)]
    os.waitpid(child, 0)
    assert len({*mine, *theirs}) == 1000


def test_research_noise_is_its_inputs() -> None:
    def drawn(*purpose: str | int) -> torch.Tensor:
        return source(privacy("reproducible"), 0, *purpose).gaussian((50,), 1.0)

    assert torch.equal(drawn(1, "x"), drawn(1, "x"))
    assert not torch.equal(drawn(1, "x"), drawn(1, "y"))
