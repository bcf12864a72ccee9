"""DP-SGD against a NumPy loop over examples, and the noise that is added."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpeft.adapters.base import GradientSupport, Penalty
from fedpeft.config import Privacy, Rounds, Train
from fedpeft.errors import UnsupportedError
from fedpeft.privacy.mechanism import mechanism
from fedpeft.privacy.randomness import Repeatable, Secure
from fedpeft.training.private import Private, draw, train_privately

CLIPPING = st.sampled_from(["flat", "per_layer"])
VMAP = GradientSupport(by="vmap", reason="either way is right here")


class Regression:
    """Squares of a linear map, one an example."""

    def collate(self, rows: Any) -> dict[str, Tensor]:
        return {"x": torch.stack([row[0] for row in rows]), "y": torch.stack([row[1] for row in rows])}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["x"]) - batch["y"]).square().sum(-1) / 2


def private(
    multiplier: float = 0.0, *, seed: int = 0, active: Any = None, support: Any = None, **options: Any
) -> Private:
    table = {"unit": "example", "delta": 1e-5, "clip": 0.7, "sample_rate": 0.5, "noise_multiplier": 1.0}
    options = {"accountant": "rdp", "noise": "reproducible", **options}
    planned = mechanism(
        Privacy.model_validate({**table, **options}),
        train=Train(local_steps=1, batch_size=3),
        rounds=Rounds(),
        num_clients=1,
    )
    made = replace(planned, noise_multiplier=multiplier)
    noise = Repeatable(torch.Generator().manual_seed(seed)) if made.privacy.noise == "reproducible" else Secure()
    return Private(mechanism=made, support=support or VMAP, noise=noise, active=active or {})


def run(model: nn.Linear, rows: Any, made: Private, **changes: Any) -> None:
    train_privately(
        model,
        dict(model.named_parameters()),
        rows,
        task=Regression(),  # type: ignore[arg-type]
        train=Train(local_steps=1, batch_size=3, optimizer="sgd"),
        rate=0.25,
        seed=1,
        private=made,
        **changes,
    )


def by_hand(w: Any, b: Any, rows: Any, drawn: Any, clipping: str) -> tuple[Any, Any]:
    """One step: each drawn example's gradient cut to 0.7, summed, divided by 3, times the rate."""
    sums = [np.zeros_like(w), np.zeros_like(b)]
    for (x, y), taken in zip(rows, drawn, strict=True):
        with np.errstate(invalid="ignore"):
            error = w @ x + b - y
            own = [np.outer(error, x), error]
        if not taken or not all(np.isfinite(g).all() for g in own):
            continue
        joint = np.sqrt(sum((g**2).sum() for g in own))
        for k, g in enumerate(own):
            bound, length = (0.7, joint) if clipping == "flat" else (0.7 / np.sqrt(2), np.sqrt((g**2).sum()))
            sums[k] += g * min(1.0, bound / length if length else 1.0)
    return w - 0.25 * sums[0] / 3, b - 0.25 * sums[1] / 3


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 9), st.sampled_from(["flat", "per_layer"]), st.sampled_from(["hooks", "vmap"])
)
def test_a_step_is_that_of_a_loop_over_examples(seed: int, count: int, clipping: str, by: str) -> None:
    drawn = np.random.default_rng(seed)
    rows = [(drawn.normal(size=4), drawn.normal(size=2)) for _ in range(count)]
    if count > 4:
        rows[2] = (np.full(4, np.inf), rows[2][1])
    model = nn.Linear(4, 2)
    w, b = (p.detach().double().numpy().copy() for p in model.parameters())
    support = VMAP if by == "vmap" else GradientSupport(by="hooks")

    run(
        model,
        [tuple(torch.tensor(v, dtype=torch.float32) for v in row) for row in rows],
        private(seed=seed % 1000, clipping=clipping, support=support),
    )

    taken = torch.rand(count, generator=torch.Generator().manual_seed(seed % 1000), dtype=torch.float64).numpy() < 0.5
    expected = by_hand(w, b, rows, taken, clipping)
    for parameter, value in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=2e-5, atol=2e-6)
        assert not {"grad_sample", "summed_grad"} & set(vars(parameter))
        assert parameter.grad is None


@pytest.mark.parametrize("noise", ["secure", "reproducible"])
def test_noise_has_the_stated_deviation_in_every_tensor_and_none_where_nothing_trains(noise: str) -> None:
    model = nn.Linear(1000, 1000)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask = (torch.arange(1000) >= 100).reshape(-1, 1)

    run(model, [], private(4.0, noise=noise, active={"weight": mask}))

    moved = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    std = 4.0 * 0.7 / 3 * 0.25
    assert abs(float(moved["weight"][100:].std()) / std - 1) < 0.0035
    assert abs(float(moved["bias"].std()) / std - 1) < 0.11
    assert not moved["weight"][:100].any()


def test_who_is_drawn_is_of_the_generator_alone_and_each_at_the_rate() -> None:
    sizes = []
    for seed in range(400):
        made = private(seed=seed)
        sizes.append(sum(len(rows) for rows in draw(list(range(40)), 3, made)))
    assert abs(np.mean(sizes) - 20) < 0.6
    assert abs(np.var(sizes) - 10) < 3
    assert max(len(rows) for rows in draw(list(range(40)), 3, private())) == 3
    assert list(draw([], 3, private())) == [[]]


def test_a_penalty_of_parameters_alone_is_added_after_the_noise() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()

    run(model, [], private(), penalty=lambda: Penalty(data_free=model.weight.sum() * 8))

    torch.testing.assert_close(model.weight.detach(), before - 0.25 * 8)
    with pytest.raises(UnsupportedError, match="penalty looks at data"):
        run(model, [], private(), penalty=lambda: Penalty(per_sample=torch.ones(3)))
