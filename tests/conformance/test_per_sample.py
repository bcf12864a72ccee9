"""Every adapter on every architecture: the declared way to gradients of single examples equals the loop, or refuses."""

import pytest
import torch
from torch import Tensor, nn

from fedpeft.adapters.base import Attached
from fedpeft.errors import UnsupportedError
from fedpeft.privacy.per_sample import Batch, by_loop, way
from fedpeft.privacy.proof import TOLERANCE, prove
from tests.adapters.models import SAMPLES, random_state
from tests.conformance.test_adapters import adapter_of, attach, every_adapter, everywhere


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """A squared linear form of the logits: nothing drawn, which torch.func would draw anew for each example."""
    found = model(**batch).logits.flatten(1)
    form = (torch.arange(found.shape[1]) + 1.0).sin().to(found)
    squared: Tensor = (found @ form / len(form) - 1).square()
    return squared


def batch_of(model: str) -> Batch:
    """The architecture's inputs, the last example of a text half padding."""
    batch = {name: value.clone() for name, value in SAMPLES[model].inputs.items()}
    if "attention_mask" in batch:
        batch["attention_mask"][-1, 3:] = 0
        batch["input_ids"][-1, 3:] = 0
    return batch


def traces(attached: Attached) -> list[object]:
    """All that gradients must leave as it was."""
    return [
        (name, module.training, sorted(vars(module)), len(module._forward_hooks), len(module._backward_hooks))
        for name, module in attached.model.named_modules()
    ] + [(name, sorted(vars(parameter)), parameter.grad) for name, parameter in attached.model.named_parameters()]


@everywhere
@every_adapter
@pytest.mark.parametrize("padded", [False, True])
def test_the_declared_way_equals_the_loop_or_is_refused_with_a_reason(name: str, model: str, padded: bool) -> None:
    support, attached = adapter_of(name).gradients(), attach(name, model)
    batch = batch_of(model) if padded else dict(SAMPLES[model].inputs)
    if support.by == "refused":
        with pytest.raises(UnsupportedError, match="has no gradients of single examples"):
            prove(attached.model, support, batch, losses)
        assert support.reason
        return
    attached.write(random_state(attached, 1))
    attached.model.double()  # random factors may be ill-conditioned, and what is asked is no question of rounding
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    before, state = traces(attached), attached.read().digest()

    truth, found = by_loop(attached.model, batch, losses), way(support)(attached.model, batch, losses)

    assert list(found) == list(truth)
    assert len(found) == len(attached.parameters())
    largest = max(float(value.abs().max()) for value in truth.values())
    for slot, expected in truth.items():
        torch.testing.assert_close(found[slot], expected, rtol=0, atol=TOLERANCE * largest)
    assert (traces(attached), attached.read().digest()) == (before, state)


@everywhere
@every_adapter
def test_it_can_be_proved_at_the_start_and_leaves_no_trace(name: str, model: str) -> None:
    support, attached = adapter_of(name).gradients(), attach(name, model)
    if support.by == "refused":
        return
    before = (traces(attached), attached.read().digest())

    prove(attached.model, support, batch_of(model), losses)

    assert (traces(attached), attached.read().digest()) == before
