"""Client-level privacy: the cut against NumPy, and the noise on the sum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.config import Privacy
from fedpeft.privacy.per_client import clipped
from fedpeft.privacy.randomness import gaussian, source
from fedpeft.tensors import Spec, Tensors

SIZES = st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4, 1e30, 3e38, np.inf, np.nan])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(SIZES, min_size=1, max_size=4), st.floats(1e-3, 1e3))
def test_the_norm_of_all_tensors_together_is_never_above_the_clip_and_never_nan(
    seed: int, sizes: list[float], norm: float
) -> None:
    drawn = np.random.default_rng(seed)
    arrays = [(drawn.uniform(-1, 1, (3, k + 1)) * size).astype(np.float32) for k, size in enumerate(sizes)]

    found = clipped(Tensors((f"t{k}", torch.from_numpy(a)) for k, a in enumerate(arrays)), norm)

    flat = np.concatenate([array.astype(np.float64).ravel() for array in arrays])
    got = np.concatenate([tensor.double().numpy().ravel() for tensor in found.values()])
    assert np.linalg.norm(got) <= norm * (1 + 1e-6)
    assert np.isfinite(got).all()
    if not np.isfinite(flat).all():
        assert not got.any()
    else:
        scale = float(np.abs(flat).max()) or 1.0
        length = scale * np.linalg.norm(flat / scale)
        np.testing.assert_allclose(got, flat * min(1.0, norm / length if length else 1.0), rtol=1e-6, atol=1e-44)


def test_ten_thousand_updates_of_all_sizes_are_within_the_clip() -> None:
    drawn = np.random.default_rng(3)
    scales = 10.0 ** drawn.uniform(-38, 38, (10_000, 2))
    scales[drawn.random((10_000, 2)) < 0.05] = np.nan
    scales[drawn.random((10_000, 2)) < 0.05] = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        arrays = (drawn.normal(size=(10_000, 2, 5)) * scales[:, :, None]).astype(np.float32)
    sizes = []
    for row in torch.from_numpy(arrays):
        found = clipped(Tensors({"a": row[0], "b": row[1]}), 0.7)
        sizes.append(float(torch.cat(list(found.values())).double().norm()))
    assert max(sizes) <= 0.7 * (1 + 1e-6)
    assert np.isfinite(sizes).all()
    assert np.mean(np.abs(np.array(sizes) / 0.7 - 1) < 1e-6) > 0.4, "some are cut"


def privacy(noise: str) -> Privacy:
    return Privacy.model_validate({"unit": "client", "delta": 1e-5, "clip": 1.0, "epsilon": 1.0, "noise": noise})


@pytest.mark.parametrize("noise", ["secure", "reproducible"])
def test_a_million_draws_have_the_stated_deviation_and_tensors_are_independent(noise: str) -> None:
    specs = [Spec(name=name, shape=(1000, 1000), dtype="float32") for name in "ab"]

    found = gaussian(specs, 2.5, source(privacy(noise), 7, "test"))

    for tensor in found.values():
        assert abs(float(tensor.std()) / 2.5 - 1) < 0.0035
        assert abs(float(tensor.mean())) < 2.5 * 5e-3
        assert abs(float(((tensor / 2.5) ** 4).mean()) - 3) < 0.03
    both = torch.stack([tensor.flatten() for tensor in found.values()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.005
