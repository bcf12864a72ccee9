"""Regularisers of adapters under example-level privacy: whole beside the noise, neither cut, hidden nor dropped."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedpeft.adapters.base import Attached, Penalty
from fedpeft.config import Train
from fedpeft.tensors import Tensors
from fedpeft.training.private import train_privately
from tests.adapters.models import random_state
from tests.conformance.test_adapters import adapter_of, attach
from tests.conformance.test_per_sample import batch_of, losses
from tests.training.test_private import private

RATE, CLIP = 0.5, 0.7


class Rows:
    """The two words of a task that training says."""

    def collate(self, rows: Any) -> dict[str, Tensor]:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return losses(model, batch)


def trained(attached: Attached, start: Tensors, *, penalty: Any, noise: float, by: Any) -> Tensors:
    """Return where one private step of SGD leads from there; equal noise and examples each time."""
    attached.write(start)
    batch = batch_of("bert")
    train_privately(
        attached.model,
        attached.parameters(),
        [{name: value[at] for name, value in batch.items()} for at in range(len(batch["input_ids"]))],
        task=Rows(),  # type: ignore[arg-type]
        train=Train(local_steps=1, batch_size=3, optimizer="sgd"),
        rate=RATE,
        seed=1,
        private=private(noise, seed=3, support=by),
        penalty=penalty,
    )
    return attached.read()


@pytest.mark.parametrize("name", ["kasa", "sorsa"])
def test_a_regulariser_is_added_whole_after_cut_and_noise(name: str) -> None:
    adapter, attached = adapter_of(name), attach(name, "bert")
    start = random_state(attached, 1)
    attached.write(start)
    alone = torch.autograd.grad(
        adapter.penalty(attached).data_free,  # type: ignore[arg-type]
        list(attached.parameters().values()),
        materialize_grads=True,
        allow_unused=True,
    )
    force = torch.cat([part.flatten() for part in alone])
    strength = 20 * CLIP / float(force.norm())  # so that a cut would show

    def penalty() -> Penalty:
        return Penalty(data_free=strength * adapter.penalty(attached).data_free)  # type: ignore[operator]

    def flat(tensors: Tensors) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors.values()])

    by = adapter.gradients()
    plain, with_it = (trained(attached, start, penalty=p, noise=4.0, by=by) for p in (Penalty, penalty))
    silent = trained(attached, start, penalty=Penalty, noise=0.0, by=by)

    assert abs(float(flat(plain - silent).std()) / (RATE * 4.0 * CLIP / 3) - 1) < 0.1, "there is noise"
    assert float(flat(silent - start).norm()) > 0, "and there is a gradient"
    torch.testing.assert_close(flat(with_it - plain), -RATE * strength * force, rtol=1e-4, atol=1e-5)
