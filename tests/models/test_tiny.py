"""Models built from a config: deterministic to the bit, of the right kind, refused where they make no sense."""

import pytest
import torch
from pydantic import ValidationError

from fedpeft.errors import ModelError
from fedpeft.models import tiny
from fedpeft.models.base import Kind, Loaded, Wanted
from fedpeft.models.fingerprint import base_hash
from fedpeft.models.head import head_modules

SERVED: list[tuple[str, Kind]] = [
    ("bert", "sequence_classification"),
    ("llama", "sequence_classification"),
    ("gpt2", "sequence_classification"),
    ("llama", "causal_lm"),
    ("gpt2", "causal_lm"),
    ("vit", "image_classification"),
]


def load(architecture: str, kind: Kind, seed: int = 0, **sizes: float) -> Loaded:
    options = tiny.Options.model_validate({"architecture": architecture, **sizes})
    names = () if kind == "causal_lm" else ("a", "b", "c")
    return tiny.make(options).load(Wanted(kind=kind, label_names=names, seed=seed))


@pytest.mark.parametrize(("architecture", "kind"), SERVED)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(architecture: str, kind: Kind) -> None:
    first, again, other = (base_hash(load(architecture, kind, seed).model, exclude=()) for seed in (1, 1, 2))

    assert first == again
    assert first != other


@pytest.mark.parametrize(("architecture", "kind"), SERVED)
def test_the_model_is_float32_and_in_eval_mode_and_the_global_generator_is_untouched(
    architecture: str, kind: Kind
) -> None:
    before = torch.random.get_rng_state()

    model = load(architecture, kind).model

    assert torch.equal(before, torch.random.get_rng_state())
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("architecture", "kind", "head"),
    [
        ("bert", "sequence_classification", ("classifier",)),
        ("llama", "sequence_classification", ("score",)),
        ("gpt2", "sequence_classification", ("score",)),
        ("vit", "image_classification", ("classifier",)),
    ],
)
def test_the_head_is_found_and_has_one_row_a_class(architecture: str, kind: Kind, head: tuple[str, ...]) -> None:
    model = load(architecture, kind).model

    assert head_modules(model) == head
    assert model.get_submodule(head[0]).weight.shape == (3, 32)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}


def test_the_head_of_a_wrapped_model_has_its_whole_name() -> None:
    wrapped = torch.nn.ModuleDict({"inner": load("bert", "sequence_classification").model})

    assert head_modules(wrapped) == ("inner.classifier",)
    assert head_modules(torch.nn.Linear(2, 2)) == ()


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("bert", "causal_lm"), ("vit", "sequence_classification"), ("llama", "image_classification")],
)
def test_a_kind_that_the_architecture_does_not_serve_is_refused(architecture: str, kind: Kind) -> None:
    with pytest.raises(ModelError, match=f"tiny {architecture} serves .*, not {kind}"):
        load(architecture, kind)


def test_one_label_is_too_few() -> None:
    source = tiny.make(tiny.Options())

    with pytest.raises(ModelError, match=r"at least 2 label names, got \['only'\]"):
        source.load(Wanted(kind="sequence_classification", label_names=("only",), seed=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 30}, "multiple of num_heads"),
        ({"architecture": "llama", "hidden_size": 12}, "must be even"),
        ({"architecture": "vit", "patch_size": 3}, "multiple of patch_size"),
        ({"image_size": 16}, "image_size has no effect on bert"),
        ({"architecture": "vit", "max_positions": 64}, "max_positions has no effect on vit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny.Options.model_validate(options)


def test_written_out_options_read_back() -> None:
    for architecture in ("bert", "vit"):
        options = tiny.Options(architecture=architecture)
        assert tiny.Options.model_validate(options.model_dump()) == options


@pytest.mark.parametrize(("architecture", "kind"), SERVED)
def test_dropout_reaches_the_model(architecture: str, kind: Kind) -> None:
    model = load(architecture, kind, dropout=0.25).model

    rates = {value for name, value in vars(model.config).items() if "drop" in name and name != "summary_first_dropout"}
    assert 0.25 in rates
    assert rates <= {0.25, None}
