from typing import Any, Literal

import pytest
import torch
from torch import nn

from fedpeft.adapters.base import Attached
from fedpeft.adapters.bottleneck import Options, make
from fedpeft.errors import UnsupportedError
from tests.adapters.models import BLOCKS, SAMPLES, WIDTH, build, random_state

LAST_LAYERS = {
    "bert": ("attention.output.dense", "output.dense"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "llama_classifier": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "vit": ("attention.o_proj", "mlp.fc2"),
}


def attach(model: str, **options: Any) -> Attached:
    adapter, base = make(Options(**options)), build(model)
    return adapter.attach(base, adapter.plan(base, seed=3))


@pytest.mark.parametrize("model", SAMPLES)
@pytest.mark.parametrize(("placement", "num_per_block"), [("both", 2), ("feed_forward", 1)])
def test_it_trains_2md_m_d_numbers_an_adapter(
    model: str, placement: Literal["both", "feed_forward"], num_per_block: int
) -> None:
    attached = attach(model, size=5, placement=placement)

    assert attached.read().num_elements == BLOCKS * num_per_block * (2 * 5 * WIDTH + 5 + WIDTH)
    ends = {slot.group.partition(f".{BLOCKS - 1}.")[2] for slot in attached.slots} - {""}
    assert ends == set(LAST_LAYERS[model][-num_per_block:])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_adapted_layer_is_the_formula_by_hand(activation: str) -> None:
    attached = attach("gpt2", size=3, activation=activation)
    attached.write(random_state(attached, 1))
    path, state = "transformer.h.1.attn.c_proj", attached.read()
    inputs = torch.randn(2, 4, WIDTH)

    down, d, up, u = (state[f"{path}.{name}"] for name in ("down.weight", "down.bias", "up.weight", "up.bias"))
    y = build("gpt2").get_submodule(path)(inputs)
    f = {"relu": torch.relu, "gelu": nn.functional.gelu}[activation]

    expected = y + f(y @ down.T + d) @ up.T + u
    torch.testing.assert_close(attached.model.get_submodule(path)(inputs), expected)


def test_layers_can_be_named_instead_of_a_placement() -> None:
    slots = attach("vit", target_modules=("fc1",)).slots

    assert {slot.group for slot in slots} == {f"vit.layers.{block}.mlp.fc1" for block in range(BLOCKS)}


def test_an_unknown_layout_asks_for_names_and_lists_them() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))

    with pytest.raises(UnsupportedError, match=r"Sequential follow no layout known here; name adapter.target_modules"):
        make(Options()).plan(model, seed=1)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"has no nn.Linear or Conv1D"):
        make(Options(target_modules=("fc",))).plan(nn.Sequential(nn.ReLU()), seed=1)
