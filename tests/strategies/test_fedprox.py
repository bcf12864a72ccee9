import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fedpeft.strategies.base import Turn
from fedpeft.strategies.fedprox import FedProx, Options, make
from fedpeft.tensors import Tensors


def prox(mu: float) -> FedProx:
    return make(Options(mu=mu))


def turn_of(received: Tensors) -> Turn:
    return Turn(slots=(), received=received, round_number=1, num_clients=1, learning_rate=0.1)


def test_the_penalty_and_its_gradient_are_the_formula_by_hand() -> None:
    """0.5 / 2 * (1 + 4 + 9) = 3.5; gradient 0.5 * (w - w_received)."""
    received = Tensors({"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([[0.0]])})
    a, b = nn.Parameter(torch.tensor([2.0, 3.0])), nn.Parameter(torch.tensor([[-3.0]]))

    penalty = prox(0.5).penalty({"a": a, "b": b}, turn_of(received))

    assert penalty is not None
    assert (penalty.shape, penalty.item()) == ((), 3.5)
    gradients = torch.autograd.grad(penalty, [a, b])
    assert [gradient.tolist() for gradient in gradients] == [[0.5, 1.0], [[-1.5]]]


def test_only_what_trains_and_was_received_is_pulled() -> None:
    received = Tensors({"frozen": torch.zeros(2), "shared": torch.zeros(2)})
    trained = {"shared": nn.Parameter(torch.ones(2)), "local": nn.Parameter(torch.ones(2))}

    penalty = prox(1.0).penalty(trained, turn_of(received))

    assert penalty is not None
    assert penalty.item() == 1.0
    assert prox(1.0).penalty({"local": trained["local"]}, turn_of(received)) is None


def test_it_is_zero_with_zero_gradient_at_the_start_of_a_round() -> None:
    received = Tensors({"w": torch.randn(3, 2)})
    parameter = nn.Parameter(received["w"].clone())

    penalty = prox(7.0).penalty({"w": parameter}, turn_of(received))

    assert penalty is not None
    assert penalty.item() == 0.0
    assert not torch.autograd.grad(penalty, parameter)[0].any()


def test_mu_of_zero_is_refused_since_it_would_be_fedavg() -> None:
    with pytest.raises(ValidationError):
        Options(mu=0.0)
