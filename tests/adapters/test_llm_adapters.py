"""Bottlenecks in series and in parallel against three lines of NumPy; they differ, and start as the base."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fedpeft.adapters.base import Attached
from fedpeft.adapters.llm_adapters import Options, make
from fedpeft.errors import UnsupportedError
from tests.adapters.models import BLOCKS, SAMPLES, build, logits, random_state


def attached_to(model: str, **options: Any) -> Attached:
    adapter, base = make(Options(**options)), build(model)
    return adapter.attach(base, adapter.plan(base, seed=3))


@pytest.mark.parametrize("form", ["series", "parallel"])
@pytest.mark.parametrize("model", ["bert", "gpt2", "llama", "vit"])
def test_the_output_is_the_formula_by_hand(form: str, model: str) -> None:
    attached = attached_to(model, form=form, size=5)
    attached.write(random_state(attached, 1))
    state = {name: value.double().numpy() for name, value in attached.read().items()}
    group = attached.slots[0].group
    layer = attached.model.get_submodule(group)
    plain: nn.Module = layer.get_submodule("base")
    inputs = torch.randn(2, 3, 24)

    with torch.no_grad():
        got, y, x = layer(inputs).double().numpy(), plain(inputs).double().numpy(), inputs.double().numpy()
    down, up = state[f"{group}.down.weight"], state[f"{group}.up.weight"]
    h = y if form == "series" else x
    np.testing.assert_allclose(got, y + np.tanh(h @ down.T) @ up.T, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "end", "layers"),
    [
        ("bert", "intermediate.dense", 1),
        ("gpt2", "mlp.c_fc", 1),
        ("llama", "up_proj gate_proj", 2),
        ("vit", "mlp.fc1", 1),
    ],
)
def test_on_the_input_side_of_up_and_gate_the_layer_reads_what_was_added(model: str, end: str, layers: int) -> None:
    attached = attached_to(model, size=5, side="input", target_modules=tuple(end.split()))
    assert attached.read().num_elements == BLOCKS * layers * 5 * (16 + 16)
    assert torch.equal(logits(attached.model, model), logits(build(model), model))
    attached.write(random_state(attached, 1))
    group = attached.slots[0].group
    layer, inputs = attached.model.get_submodule(group), torch.randn(2, 3, 16)
    linear = build(model).get_submodule(group)
    weight = linear.get_parameter("weight").detach().double().numpy()
    bias = 0.0 if model == "llama" else linear.get_parameter("bias").detach().double().numpy()
    down, up = (attached.read()[f"{group}.{name}.weight"].double().numpy() for name in ("down", "up"))

    with torch.no_grad():
        got, x = layer(inputs).double().numpy(), inputs.double().numpy()

    h = x + np.tanh(x @ down.T) @ up.T
    np.testing.assert_allclose(got, h @ (weight if model == "gpt2" else weight.T) + bias, atol=1e-5)


def test_a_side_is_of_series_alone() -> None:
    with pytest.raises(ValidationError, match=r"side = 'input' is of form = 'series'"):
        Options(form="parallel", side="input")


def test_the_two_forms_compute_different_things() -> None:
    found = []
    for form in ("series", "parallel"):
        attached = attached_to("bert", form=form, size=5)
        attached.write(
            random_state(attached, 1).map(lambda value: torch.linspace(-1, 1, value.numel()).reshape(value.shape))
        )
        found.append(logits(attached.model, "bert"))
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("form", ["series", "parallel"])
def test_mam_starts_as_the_base_to_the_bit_and_bert_near_it(form: str) -> None:
    base = logits(build("llama"), "llama")
    assert torch.equal(logits(attached_to("llama", form=form).model, "llama"), base)
    near = logits(attached_to("llama", form=form, init="bert").model, "llama")
    assert 0 < float((near - base).abs().max()) < 0.5


@pytest.mark.parametrize("form", ["series", "parallel"])
def test_training_leaves_every_bit_of_the_base(form: str) -> None:
    attached = attached_to("bert", size=5, form=form)
    optimizer = torch.optim.SGD(attached.parameters().values(), lr=0.1)
    attached.write(random_state(attached, 1))
    attached.model(**SAMPLES["bert"].inputs).logits.square().sum().backward()
    optimizer.step()

    kept = {name.replace(".base.", "."): value for name, value in attached.model.state_dict().items()}
    assert all(torch.equal(kept[name], value) for name, value in build("bert").state_dict().items())


def test_counts_placement_and_the_refusal_to_merge() -> None:
    series, beside = attached_to("bert", size=5), attached_to("bert", size=5, form="parallel")
    assert series.read().num_elements == BLOCKS * 5 * (16 + 16)
    assert beside.read().num_elements == BLOCKS * 5 * (24 + 16)
    both = attached_to("llama", size=5, form="parallel", target_modules=("up_proj", "down_proj"))
    assert both.read().num_elements == BLOCKS * 5 * 2 * (24 + 16)
    with pytest.raises(UnsupportedError, match="cannot be merged"):
        make(Options()).merge(series)
