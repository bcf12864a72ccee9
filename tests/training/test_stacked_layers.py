"""Stacked layers against each client alone, and what is refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedpeft.errors import UnsupportedError
from fedpeft.training.stack import Stack

GROUPS, EACH = 3, 2


class Doubled(nn.Module):
    """A computed weight: twice the frozen one, plus what trains."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(4, 5))

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight + self.theta


class Held(nn.Module):
    """A layer whose parameter lies in a dictionary that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.ParameterDict({"scale": nn.Parameter(torch.ones(5))})

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.inside["scale"]


def layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "held":
        return Held()
    found = nn.Linear(5, 4, bias=kind != "unbiased")
    if kind == "computed":
        found.requires_grad_(False)
        parametrize.register_parametrization(found, "weight", Doubled())
    if kind == "bias":
        found.weight.requires_grad_(False)
    if kind == "weight":
        assert found.bias is not None
        found.bias.requires_grad_(False)
    return found


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("kind", ["linear", "unbiased", "bias", "weight", "computed", "held"])
def test_each_group_has_its_own_values_forward_and_backward(kind: str, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Identity(), layer(kind))
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    values = [torch.randn(GROUPS, *each.shape, requires_grad=True) for each in live]
    inputs = torch.randn(GROUPS * EACH, *shape)
    expected = []
    for group in range(GROUPS):
        with torch.no_grad():
            for each, value in zip(live, values, strict=True):
                each.copy_(value[group])
        outputs = model(inputs[EACH * group : EACH * (group + 1)])
        expected.append((outputs.detach(), torch.autograd.grad(outputs.square().sum(), live)))

    stack = Stack(model, live)
    stack.values, stack.groups, stack.rows = dict(zip(live, values, strict=True)), GROUPS, GROUPS * EACH
    with stack.in_place():
        outputs = model(inputs)
    found = torch.autograd.grad(outputs.square().sum(), values)

    torch.testing.assert_close(outputs.detach(), torch.cat([rows for rows, _ in expected]))
    for at, gradient in enumerate(found):
        torch.testing.assert_close(gradient, torch.stack([each[at] for _, each in expected]))
    assert "forward" not in vars(model[1])


def test_a_layer_that_is_called_on_other_rows_is_named() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(5, 4))
    stack = Stack(model, [model[1].weight])
    stack.values, stack.groups, stack.rows = {model[1].weight: torch.zeros(2, 4, 5)}, 2, 4
    with (
        stack.in_place(),
        pytest.raises(UnsupportedError, match=r"'1' \(Linear\) trains .* rows are the batch's 4, .*\(12, 5\)"),
    ):
        model(torch.zeros(4, 3, 5))


def test_a_parameter_that_is_not_the_models_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="1 of 1 trained parameters are not the model's own"):
        Stack(nn.Linear(2, 2), [nn.Parameter(torch.zeros(2))])
