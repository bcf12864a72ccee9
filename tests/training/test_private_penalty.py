"""A regulariser of the parameters alone acts under DP-SGD too, though its optimizer rewrites gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedpeft.adapters import kasa, sorsa
from fedpeft.config import Train
from fedpeft.training.private import train_privately
from tests.adapters import test_kasa, test_sorsa
from tests.adapters.models import SAMPLES, build
from tests.training.test_private import private

ROWS = [{name: value[at] for name, value in SAMPLES["bert"].inputs.items()} for at in range(3)]


class ToFive:
    """Logits are to be 5."""

    def collate(self, rows: Any) -> dict[str, Tensor]:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = (model(**batch).logits - 5).square().mean(-1)
        return found


def left(module: Any, options: dict[str, Any], measured: Any) -> float:
    """Return the gap from orthonormal that 40 noised steps leave."""
    adapter, base = module.make(module.Options(rank=4, target_modules=("query",), **options)), build("bert")
    attached = adapter.attach(base, adapter.plan(base, seed=3))
    one = private(1.0, support=adapter.gradients())
    train_privately(
        attached.model,
        attached.parameters(),
        ROWS,  # type: ignore[arg-type]
        task=ToFive(),  # type: ignore[arg-type]
        train=Train(local_steps=40, batch_size=3, optimizer="sgd"),
        rate=0.05,
        seed=1,
        private=replace(one, mechanism=replace(one.mechanism, steps=40)),
        penalty=lambda: adapter.penalty(attached),
    )
    return float(measured(attached.read()))


@pytest.mark.parametrize(
    ("module", "key", "strength", "measured"),
    [(kasa, "gamma", 3.0, test_kasa.gap), (sorsa, "regularisation", 2.0, test_sorsa.regulariser)],
    ids=["kasa", "sorsa"],
)
def test_under_noise_the_regulariser_leaves_less_than_half_the_gap(
    module: Any, key: str, strength: float, measured: Any
) -> None:
    """Its gradient has one length wherever it stands, so a strength far above this one would only swing."""
    without, with_it = (left(module, {key: value}, measured) for value in (0.0, strength))
    assert with_it < 0.5 * without
