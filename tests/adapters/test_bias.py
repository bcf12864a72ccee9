"""Biases alone train: against NumPy, on paths given by hand, merged to the bit."""

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.adapters.base import Algebra, Attached
from fedpeft.adapters.bias import Options, make
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Tensors
from tests.adapters.models import BLOCKS, INNER, WIDTH, build, logits, random_state
from tests.conformance.promise import Promise

PROMISE = Promise(count=lambda layers: sum(d_out for _, _, d_out in layers), refuses=("llama", "llama_classifier"))


def attached_to(model: str, *targets: str) -> Attached:
    adapter, base = make(Options(target_modules=targets or None)), build(model)
    return adapter.attach(base, adapter.plan(base, seed=3))


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        ("bert", BLOCKS * (5 * WIDTH + INNER) + WIDTH),  # query, key, value, two outputs, the inner layer; the pooler
        ("gpt2", BLOCKS * (3 * WIDTH + 2 * WIDTH + INNER)),
        ("vit", BLOCKS * (5 * WIDTH + INNER)),
    ],
)
def test_as_many_numbers_train_as_counted_by_hand(model: str, numbers: int) -> None:
    attached = attached_to(model)
    assert attached.read().num_elements == numbers
    assert {slot.algebra for slot in attached.slots} == {Algebra.LINEAR}
    assert torch.equal(logits(attached.model, model), logits(build(model), model))


@pytest.mark.parametrize(("model", "end"), [("bert", "intermediate.dense"), ("gpt2", "mlp.c_fc"), ("vit", "mlp.fc1")])
def test_a_layer_gives_its_frozen_product_and_the_trained_bias(model: str, end: str) -> None:
    attached = attached_to(model, end)
    attached.write(random_state(attached, 1))
    path = attached.slots[0].group
    layer, inputs = attached.model.get_submodule(path), torch.randn(2, 3, WIDTH)
    frozen = build(model).get_submodule(path).get_parameter("weight").detach().double().numpy()

    with torch.no_grad():
        got = layer(inputs).double().numpy()

    matrix = frozen if model == "gpt2" else frozen.T
    bias = attached.read()[f"{path}.bias"].double().numpy()
    np.testing.assert_allclose(got, inputs.double().numpy() @ matrix + bias, atol=1e-5)
    assert [slot.name for slot in attached.slots] == [f"{slot.group}.bias" for slot in attached.slots]
    assert len(attached.slots) == BLOCKS


def test_the_merged_model_is_the_base_with_other_biases_to_the_bit() -> None:
    attached, base = attached_to("bert"), build("bert").state_dict()
    state: Tensors = random_state(attached, 1)
    attached.write(state)

    merged = make(Options()).merge(attached)

    assert not any(parameter.requires_grad for parameter in merged.parameters())
    for name, value in merged.state_dict().items():
        assert torch.equal(value, dict(state).get(name, base[name]))


def test_models_and_layers_without_biases_are_refused_with_the_remedy() -> None:
    with pytest.raises(UnsupportedError, match=r"none of the 14 linear layers .* LlamaForCausalLM .*'lora'"):
        attached_to("llama")
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2))
    assert make(Options()).plan(model, seed=1).values["targets"] == ["1"]
    with pytest.raises(UnsupportedError, match="none of the 1 linear layers"):
        make(Options(target_modules=("0",))).plan(model, seed=1)
