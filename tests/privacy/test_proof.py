"""What the proof must catch: each of these gives wrong gradients, or none, and Opacus raises nothing."""

import re

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from fedpeft.adapters.base import GradientSupport
from fedpeft.errors import UnsupportedError
from fedpeft.privacy.per_sample import Batch
from fedpeft.privacy.proof import prove
from fedpeft.seeds import isolated
from tests.privacy.test_per_sample import batch_of, network, squares

HOOKS, VMAP = GradientSupport(by="hooks"), GradientSupport(by="vmap", reason="a test")


class Prompt(nn.Module):
    """One row that stands before every example: its own call sees no batch."""

    def __init__(self) -> None:
        super().__init__()
        with isolated(0, "prompt"):
            self.rows = nn.Embedding(2, 4)
            self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        prompt = self.rows(torch.arange(2).unsqueeze(0)).expand(len(inputs), -1, -1)
        found: Tensor = self.head(prompt.sum(1) * inputs)
        return found


class Dictionary(nn.Module):
    """Factors as peft keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 3)
        self.factors = nn.ParameterDict({"default": nn.Parameter(torch.ones(3))})

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.base(inputs) * self.factors["default"]
        return found


class Borrowed(nn.Module):
    """A layer's weight is used once by calling it and once past it: shapes are right, numbers are not."""

    def __init__(self) -> None:
        super().__init__()
        with isolated(0, "borrowed"):
            self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs) + inputs.square() @ self.layer.weight.T
        return found


class Coupled(nn.Module):
    """Each output looks at half of the batch's mean."""

    def __init__(self) -> None:
        super().__init__()
        with isolated(0, "coupled"):
            self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.layer(inputs)
        centred: Tensor = found - found.mean(0) / 2
        return centred


class Keyword(nn.Module):
    """A bare tensor in a module that is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.inner(hidden=inputs)
        return found


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.ones(4))

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden * self.d)[:, :3]


@pytest.mark.parametrize(
    ("model", "parameter", "how"),
    [
        (Prompt(), "rows.weight", r"expected shape \(5, 2, 4\), got shape \(1, 2, 4\)"),
        (Dictionary(), "factors.default", r"expected shape \(5, 3\), got none"),
        (Borrowed(), "layer.weight", "away by .*, allowed is"),
        (Coupled(), "layer.weight", "away by .*, allowed is"),
        (Keyword(), "inner", "not called with one positional tensor"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_hooks_that_are_wrong_are_caught_by_name(model: nn.Module, parameter: str, how: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(UnsupportedError, match=f"'{re.escape(parameter)}'.*{how}.*declare by='vmap'"):
        prove(model, HOOKS, batch_of(5, 4, 3), squares)

    prove(model, VMAP, batch_of(5, 4, 3), squares)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(module.training for module in model.modules())


def test_opacus_itself_lets_the_prompt_pass() -> None:
    """The trap is real: one gradient for a batch of five, and no error."""
    wrapped, batch = GradSampleModule(Prompt(), loss_reduction="sum"), batch_of(5, 4, 3)
    batch["x"].requires_grad_()
    with pytest.warns(UserWarning, match="Full backward hook is firing"):
        squares(wrapped, batch).sum().backward()

    assert wrapped._module.rows.weight.grad_sample.shape == (1, 2, 4)


class LowRank(nn.Module):
    """B A x with B zero: the gradient of A is zero at the start, so that nothing wrong with it would show."""

    def __init__(self) -> None:
        super().__init__()
        with isolated(0, "pair"):
            self.a, self.b = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.b(inputs @ self.a.weight.T + 0 * self.a(inputs))
        return found


def test_a_factor_without_a_gradient_at_the_start_is_tried_too() -> None:
    model = LowRank()
    with pytest.raises(UnsupportedError, match=r"'a\.weight'"):
        prove(model, HOOKS, batch_of(5, 4, 3), squares)
    assert not model.b.weight.any()


class Faint(Borrowed):
    """The same fault in a tensor whose gradients are a millionth of another's."""

    def __init__(self) -> None:
        super().__init__()
        with isolated(0, "loud"):
            self.loud = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = 1e-3 * super().forward(inputs) + 1e3 * self.loud(inputs)
        return found


def test_a_fault_in_a_tensor_of_small_gradients_does_not_hide_behind_large_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"'layer\.weight'"):
        prove(Faint(), HOOKS, batch_of(5, 4, 3), squares)
    prove(Faint(), VMAP, batch_of(5, 4, 3), squares)


@pytest.mark.parametrize("support", [HOOKS, VMAP])
def test_what_is_right_passes_in_training_mode_with_dropout(support: GradientSupport) -> None:
    model = nn.Sequential(nn.Dropout(0.5), network()).train()
    prove(model, support, batch_of(4, 4, 3), squares)
    assert all(module.training for module in model.modules())


def test_a_branch_on_a_value_is_refused_with_what_torch_says() -> None:
    def branching(model: nn.Module, batch: Batch) -> Tensor:
        return squares(model, batch) if bool(batch["x"].sum() > 0) else squares(model, batch) * 2

    with pytest.raises(UnsupportedError, match=r"by vmap fail on this model: .*declare by='refused'"):
        prove(network(), VMAP, batch_of(3, 4, 3), branching)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.BatchNorm1d(4), "BatchNorm1d"),
        (nn.SyncBatchNorm(4), "SyncBatchNorm"),
        (nn.InstanceNorm1d(4, track_running_stats=True), "InstanceNorm1d"),
    ],
)
def test_what_mixes_examples_is_refused_by_name_frozen_or_not(layer: nn.Module, kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer.requires_grad_(False), nn.Linear(4, 3))
    with pytest.raises(UnsupportedError, match=rf"'1' \({kind}\) mixes the examples of a batch.*GroupNorm"):
        prove(model, VMAP, batch_of(3, 4, 3), squares)


def test_a_refusal_comes_with_its_reason_and_one_example_proves_nothing() -> None:
    refused = GradientSupport(by="refused", reason="experts see whole batches")
    with pytest.raises(UnsupportedError, match="experts see whole batches; take another adapter"):
        prove(network(), refused, batch_of(3, 4, 3), squares)
    with pytest.raises(UnsupportedError, match="at least 2 examples, got 1"):
        prove(network(), HOOKS, batch_of(1, 4, 3), squares)


def test_a_probe_without_gradients_proves_nothing() -> None:
    with pytest.raises(UnsupportedError, match="all are zero on this probe"):
        prove(network(), VMAP, batch_of(3, 4, 3), lambda model, batch: 0 * squares(model, batch))
