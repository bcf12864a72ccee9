"""Gradients of single examples on toys whose answers are known, and what each way must refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import RobertaConfig, RobertaForSequenceClassification, T5Config, T5EncoderModel, masking_utils

from fedpeft.adapters.base import GradientSupport
from fedpeft.errors import UnsupportedError
from fedpeft.privacy import per_sample
from fedpeft.privacy._masks import masks_in_place
from fedpeft.privacy.per_sample import Batch, Way, by_hooks, by_loop, by_vmap, way
from fedpeft.seeds import generator, isolated

ways = pytest.mark.parametrize("take", [by_loop, by_hooks, by_vmap])


def squares(model: nn.Module, batch: Batch) -> Tensor:
    """Half the squared distance from the target, of each example."""
    found: Tensor = (model(batch["x"]) - batch["y"]).square().flatten(1).sum(1) / 2
    return found


def drawn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name))


def batch_of(count: int, d_in: int, d_out: int) -> Batch:
    return {"x": drawn(count, d_in), "y": drawn(count, d_out, name="y")}


def network() -> nn.Module:
    with isolated(0, "network"):
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))


@ways
@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 5), d_in=st.integers(1, 4), d_out=st.integers(1, 4))
def test_of_a_linear_layer_they_are_the_outer_products_of_the_book(
    take: Way, count: int, d_in: int, d_out: int
) -> None:
    with isolated(0, "linear"):
        layer = nn.Linear(d_in, d_out)
    batch = batch_of(count, d_in, d_out)

    found = take(layer, batch, squares)

    w, b = (value.detach().double().numpy() for value in (layer.weight, layer.bias))
    x, y = (value.double().numpy() for value in batch.values())
    error = x @ w.T + b - y
    np.testing.assert_allclose(found["weight"].numpy(), np.einsum("no,ni->noi", error, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["bias"].numpy(), error, rtol=1e-5, atol=1e-5)
    assert found["weight"].shape == (count, d_out, d_in)


@ways
def test_only_what_trains_has_gradients_and_what_is_not_used_has_zeros(take: Way) -> None:
    model = network()
    model[0].requires_grad_(False)
    model.add_module("unused", nn.Linear(2, 2))
    first = nn.Sequential(*list(model)[:4])
    batch = batch_of(3, 4, 3)

    found = take(model, batch, lambda _, given: squares(first, given) if take is not by_vmap else _chain(model, given))

    assert list(found) == ["2.weight", "2.bias", "3.weight", "3.bias", "unused.weight", "unused.bias"]
    assert not found["unused.weight"].any()
    assert all(value.dtype == torch.float32 and len(value) == 3 for value in found.values())


def _chain(model: Any, batch: Batch) -> Tensor:
    hidden = batch["x"]
    for layer in list(model)[:4]:
        hidden = layer(hidden)
    return squares(nn.Identity(), {"x": hidden, "y": batch["y"]})


@ways
@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_model_changes(take: Way, training: bool) -> None:
    model = network().train(training)
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    drawn_before = torch.random.get_rng_state()
    attributes = [sorted(vars(module)) for module in model.modules()]

    take(model, batch_of(3, 4, 3), squares)

    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert all(not vars(parameter) for parameter in model.parameters())
    assert bool((model[0].weight.grad == 7).all())
    assert model[3].weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), drawn_before)


def test_hooks_are_gone_after_an_error_too() -> None:
    model = network()

    def broken(given: nn.Module, batch: Batch) -> Tensor:
        given(batch["x"])
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels"):
        by_hooks(model, batch_of(3, 4, 3), broken)

    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_give_what_opacus_own_module_gives() -> None:
    model, batch = network().train(), batch_of(3, 4, 3)
    found = by_hooks(model, batch, squares)

    wrapped = GradSampleModule(network().train(), loss_reduction="sum")
    squares(wrapped, {"x": batch["x"].clone().requires_grad_(), "y": batch["y"]}).sum().backward()

    for name, parameter in wrapped._module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad_sample)


@ways
def test_a_layer_that_is_called_twice_has_the_sum(take: Way) -> None:
    with isolated(0, "tied"):
        model = nn.Linear(3, 3)
    batch = batch_of(4, 3, 3)

    def twice(given: nn.Module, rows: Batch) -> Tensor:
        return squares(given, {"x": given(rows["x"]).tanh(), "y": rows["y"]})

    torch.testing.assert_close(take(model, batch, twice), by_loop(model, batch, twice))


@pytest.mark.parametrize("take", [by_hooks, by_vmap])
def test_a_diagonal_that_is_its_own_module_is_right(take: Way) -> None:
    model, batch = nn.Sequential(nn.Linear(4, 3), Diag(3)), batch_of(3, 4, 3)

    torch.testing.assert_close(take(model, batch, squares), by_loop(model, batch, squares))
    assert not hasattr(model[1], "ft_compute_sample_grad")


class Diag(nn.Module):
    """x * d."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.d = nn.Parameter(drawn(width, name="d"))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.d


class Square(nn.Module):
    """A parametrisation that is not linear."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * weight.abs()


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_reparametrised_weights_go_by_vmap_and_are_refused_by_hooks(chunk_size: int | None) -> None:
    model, batch = network(), batch_of(5, 4, 3)
    parametrize.register_parametrization(model[0], "weight", Square())
    model[0].bias.requires_grad_(False)

    found = by_vmap(model, batch, squares, chunk_size=chunk_size)

    assert "0.parametrizations.weight.original" in found
    torch.testing.assert_close(found, by_loop(model, batch, squares))
    assert isinstance(model[0].parametrizations["weight"].original, nn.Parameter)
    with pytest.raises(UnsupportedError, match=r"'0\.parametrizations\.weight'.*by='vmap'"):
        by_hooks(model, batch, squares)


def _roberta() -> nn.Module:
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    return RobertaForSequenceClassification(RobertaConfig(vocab_size=20, max_position_embeddings=16, **small))


def _t5() -> nn.Module:
    return T5EncoderModel(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("build", [_roberta, _t5])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [False, True])
def test_encoders_go_by_vmap_and_transformers_is_as_it_was(
    build: Callable[[], Any], attention: str, padded: bool
) -> None:
    with isolated(0, "encoder"):
        model = build().eval()
    model.set_attn_implementation(attention)
    ids = torch.randint(3, 20, (3, 6), generator=generator(0, "ids"))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if padded:
        batch["attention_mask"][1, 4:] = 0
    functions = dict(vars(masking_utils))

    def first(given: Any, rows: Batch) -> Tensor:
        found: Tensor = given(**rows)[0].flatten(1).square().sum(1)
        return found

    found, truth = by_vmap(model, batch, first), by_loop(model, batch, first)

    largest = max(float(value.abs().max()) for value in truth.values())
    for name, expected in truth.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5 * largest)
    assert dict(vars(masking_utils)) == functions


def test_the_masks_come_back_when_the_last_block_is_left_and_after_an_error() -> None:
    functions = dict(vars(masking_utils))

    def fail() -> None:
        with masks_in_place():
            with masks_in_place():
                pass
            assert dict(vars(masking_utils)) != functions
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert dict(vars(masking_utils)) == functions


def test_each_example_draws_its_own_dropout_by_vmap() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 1))
    row = {"x": torch.ones(2, 50), "y": torch.zeros(2, 1)}

    with isolated(0, "dropout"):
        found = by_vmap(model, row, squares)["1.weight"]

    assert not torch.equal(found[0] != 0, found[1] != 0)


@ways
def test_reduced_losses_are_refused(take: Way) -> None:
    with pytest.raises(UnsupportedError, match=r"expected one loss .* got shape \(\); do not reduce"):
        take(network(), batch_of(3, 4, 3), lambda model, batch: squares(model, batch).mean())


@ways
def test_unequal_numbers_of_examples_are_refused(take: Way) -> None:
    with pytest.raises(UnsupportedError, match=r"unequal numbers: \{'x': 2, 'y': 3\}"):
        take(network(), {"x": drawn(2, 4), "y": drawn(3, 3)}, squares)


class Buffered(nn.Module):
    """What Opacus cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.ones(3))
        self.register_buffer("w", torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.d * self.w


def test_a_layer_that_trains_and_holds_a_buffer_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 3), Buffered())
    with pytest.raises(UnsupportedError, match=r"'1' \(Buffered\) trains .* beside it"):
        by_hooks(model, batch_of(3, 4, 3), squares)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_declared_way_is_taken_and_a_refusal_says_why() -> None:
    assert way(GradientSupport(by="hooks")) is by_hooks
    assert way(GradientSupport(by="vmap", reason="reparametrised")) is by_vmap
    with pytest.raises(UnsupportedError, match="experts see whole batches"):
        way(GradientSupport(by="refused", reason="experts see whole batches"))
    assert per_sample.num_examples(batch_of(3, 1, 1)) == 3


@ways
def test_a_model_of_which_nothing_trains_is_refused(take: Way) -> None:
    with pytest.raises(UnsupportedError, match="no parameter of Sequential trains"):
        take(network().requires_grad_(False), batch_of(3, 4, 3), squares)
