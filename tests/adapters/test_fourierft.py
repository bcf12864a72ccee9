"""FourierFT against the inverse transform written out as a sum of cosines and sines."""

import numpy as np
import pytest

from fedpeft.adapters._svd import weight_of
from fedpeft.adapters.fourierft import Options, make
from fedpeft.errors import UnsupportedError
from tests.adapters.models import build, random_state
from tests.conformance.promise import Promise

PROMISE = Promise(count=lambda layers: 64 * len(layers), options={"entries": 64})


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_the_update_is_the_real_part_of_the_inverse_transform(model: str) -> None:
    adapter = make(Options(entries=7, scale=30.0))
    plan = adapter.plan(build(model), seed=1)
    attached = adapter.attach(build(model), plan)
    attached.write(random_state(attached, 1))
    state, merged = attached.read(), adapter.merge(attached)

    for path in plan.values["targets"]:
        before = weight_of(build(model).get_submodule(path)).numpy()
        d_out, d_in = before.shape
        p, q = np.meshgrid(np.arange(d_out), np.arange(d_in), indexing="ij")
        update = np.zeros_like(before)
        for entry, coefficient in zip(plan.tensors[path].tolist(), state[f"{path}.coefficients"].tolist(), strict=True):
            u, v = divmod(entry, d_in)
            update += coefficient * np.cos(2 * np.pi * (p * u / d_out + q * v / d_in)) / (d_out * d_in)
        np.testing.assert_allclose(weight_of(merged.get_submodule(path)).numpy(), before + 30.0 * update, atol=1e-6)


def test_layers_of_one_shape_share_their_entries_and_other_seeds_draw_others() -> None:
    plans = [make(Options(entries=7)).plan(build("bert"), seed=seed) for seed in (1, 2)]
    queries = [name for name in plans[0].tensors if name.endswith("query")]
    assert len({plans[0].tensors[name].numpy().tobytes() for name in queries}) == 1 < len(queries)
    assert plans[0].hash != plans[1].hash


def test_more_entries_than_a_layer_has_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"adapter.entries = 257: expected <= 256"):
        make(Options(entries=257)).plan(build("bert"), seed=1)
