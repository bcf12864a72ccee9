import pytest
import torch
from pydantic import ValidationError

from fedpeft.adapters.base import Attached
from fedpeft.adapters.ia3 import Options, make
from fedpeft.errors import UnsupportedError
from tests.adapters.models import BLOCKS, INNER, SAMPLES, WIDTH, build, random_state

COUNTS = {
    "bert": BLOCKS * (2 * WIDTH + INNER),
    "llama": BLOCKS * (2 * WIDTH // 2 + INNER),
    "llama_classifier": BLOCKS * (2 * WIDTH // 2 + INNER),
    "gpt2": BLOCKS * (3 * WIDTH + INNER),
    "vit": BLOCKS * (2 * WIDTH + INNER),
}


def attach(model: str, options: Options) -> Attached:
    adapter, base = make(options), build(model)
    return adapter.attach(base, adapter.plan(base, seed=3))


@pytest.mark.parametrize("model", SAMPLES)
def test_it_trains_one_factor_a_key_a_value_and_an_inner_activation(model: str) -> None:
    state = attach(model, Options()).read()

    assert state.num_elements == COUNTS[model]
    assert all(bool((factor == 1).all()) for factor in state.values())


def test_bert_rescales_the_feed_forward_output_and_not_the_attention_output() -> None:
    slots = attach("bert", Options()).slots

    assert [(slot.group.removeprefix("bert.encoder.layer."), slot.role) for slot in slots[:3]] == [
        ("0.attention.self.key", "output_factor"),
        ("0.attention.self.value", "output_factor"),
        ("0.output.dense", "input_factor"),
    ]


def test_outputs_and_inputs_are_rescaled_by_hand() -> None:
    attached = attach("vit", Options())
    attached.write(random_state(attached, 1))
    base, state = build("vit"), attached.read()
    value, last = "vit.layers.0.attention.v_proj", "vit.layers.0.mlp.fc2"
    inputs, inner = torch.randn(2, WIDTH), torch.randn(2, INNER)

    rescaled = base.get_submodule(value)(inputs) * state[f"{value}.ia3_l"].flatten()
    fed = base.get_submodule(last)(inner * state[f"{last}.ia3_l"].flatten())

    torch.testing.assert_close(attached.model.get_submodule(value)(inputs), rescaled)
    torch.testing.assert_close(attached.model.get_submodule(last)(inner), fed)


def test_targets_can_be_named() -> None:
    options = Options(target_modules=("q_proj",), feedforward_modules=("down_proj",))

    roles = {slot.group.rpartition(".")[2]: slot.role for slot in attach("llama", options).slots}

    assert roles == {"q_proj": "output_factor", "down_proj": "input_factor"}


def test_one_list_without_the_other_is_refused() -> None:
    with pytest.raises(ValidationError, match="or neither"):
        Options(target_modules=("q_proj",))


def test_a_layer_is_rescaled_on_one_side_only() -> None:
    with pytest.raises(UnsupportedError, match="name it in one"):
        attach("llama", Options(target_modules=("mlp.down_proj",), feedforward_modules=("down_proj",)))
