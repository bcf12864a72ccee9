"""Checkpoints of others: read safely, completed deterministically, refused with a reason."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from transformers import BertLMHeadModel
from transformers.utils import logging as transformers_logging

from fedpeft.errors import ModelError
from fedpeft.models import pretrained, tiny
from fedpeft.models.base import Kind, Loaded, Wanted
from fedpeft.models.fingerprint import base_hash

HUB_COMMIT = "0123456789abcdef0123456789abcdef01234567"
KIND_OF: dict[str, Kind] = {
    "bert": "sequence_classification",
    "llama": "causal_lm",
    "gpt2": "causal_lm",
    "vit": "image_classification",
}


class Canary:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def wanted(kind: Kind, labels: int = 3, seed: int = 0) -> Wanted:
    names = () if kind == "causal_lm" else tuple(f"class {index}" for index in range(labels))
    return Wanted(kind=kind, label_names=names, seed=seed)


def checkpoint(folder: Path, architecture: str, *, kind: Kind | None = None) -> Path:
    built = tiny.make(tiny.Options(architecture=architecture)).load(wanted(kind or KIND_OF[architecture]))
    built.model.save_pretrained(folder)
    if built.tokenizer is not None:
        built.tokenizer.save_pretrained(folder)
    return folder


def load(path: object, want: Wanted, revision: str | None = None) -> Loaded:
    return pretrained.make(pretrained.Options(path=str(path), revision=revision)).load(want)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "vit"])
def test_what_was_saved_comes_back_to_the_bit(tmp_path: Path, architecture: str) -> None:
    folder, kind = checkpoint(tmp_path, architecture), KIND_OF[architecture]
    original = tiny.make(tiny.Options(architecture=architecture)).load(wanted(kind))

    read = load(folder, wanted(kind, seed=9))

    assert base_hash(read.model, exclude=()) == base_hash(original.model, exclude=())
    assert not read.model.training
    assert (read.reference, read.revision) == (str(tmp_path.resolve()), None)
    if original.tokenizer is not None and read.tokenizer is not None:
        assert read.tokenizer("some text")["input_ids"] == original.tokenizer("some text")["input_ids"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_fresh_head_on_a_language_model_follows_the_seed_alone(tmp_path: Path, architecture: str) -> None:
    folder = checkpoint(tmp_path, architecture)

    first, again, other = (load(folder, wanted("sequence_classification", seed=seed)).model for seed in (1, 1, 2))

    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert base_hash(first, exclude=("score",)) == base_hash(other, exclude=("score",))


def test_a_head_of_another_size_is_drawn_anew_and_the_base_is_kept(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "bert")
    original = load(folder, wanted("sequence_classification", labels=3)).model

    first, again = (load(folder, wanted("sequence_classification", labels=5, seed=4)).model for _ in range(2))

    assert first.classifier.weight.shape == (5, 32)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert first.classifier.weight.std() > 0
    assert first.config.id2label[4] == "class 4"
    assert base_hash(first, exclude=("classifier",)) == base_hash(original, exclude=("classifier",))


def test_bfloat16_weights_are_read_as_float32(tmp_path: Path) -> None:
    built = tiny.make(tiny.Options()).load(wanted("sequence_classification"))
    built.model.to(torch.bfloat16).save_pretrained(tmp_path)
    built.tokenizer.save_pretrained(tmp_path)

    read = load(tmp_path, wanted("sequence_classification"))

    assert {parameter.dtype for parameter in read.model.parameters()} == {torch.float32}


def test_a_tokenizer_without_padding_gets_the_end_token(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "gpt2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    read = load(folder, wanted("sequence_classification"))

    assert read.tokenizer is not None
    assert read.tokenizer.pad_token == "[EOS]"
    assert read.model.config.pad_token_id == read.tokenizer.eos_token_id


def test_shards_are_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "bert")
    whole = load(folder, wanted("sequence_classification")).model
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()

    assert base_hash(load(folder, wanted("sequence_classification")).model, exclude=()) == base_hash(whole, exclude=())


def test_a_pickle_is_refused_by_name_and_never_executed(tmp_path: Path) -> None:
    folder, canary = checkpoint(tmp_path / "model", "bert"), tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))

    with pytest.raises(ModelError, match=r"no model\.safetensors.*pytorch_model\.bin.*convert") as caught:
        load(folder, wanted("sequence_classification"))

    assert str(folder) in str(caught.value)
    assert not canary.exists()


def test_an_index_cannot_lead_to_a_pickle_or_out_of_the_folder(tmp_path: Path) -> None:
    folder, canary = checkpoint(tmp_path / "model", "bert"), tmp_path / "executed"
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))

    for named in ("pytorch_model.bin", "../model.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": named}}))
        with pytest.raises(ModelError, match="only"):
            load(folder, wanted("sequence_classification"))

    assert not canary.exists()


def test_a_config_cannot_lead_to_a_pickle(tmp_path: Path) -> None:
    folder, canary = checkpoint(tmp_path / "model", "bert"), tmp_path / "executed"
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    change(folder / "config.json", transformers_weights="adapter_model.bin")

    load(folder, wanted("sequence_classification"))

    assert not canary.exists()


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    folder, canary = checkpoint(tmp_path / "model", "bert"), tmp_path / "executed"
    (folder / "code.py").write_text(f"open({str(canary)!r}, 'w')")
    change(
        folder / "config.json",
        model_type="unheard_of",
        auto_map={"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.M"},
    )

    with pytest.raises(ModelError, match="cannot be read for sequence_classification"):
        load(folder, wanted("sequence_classification"))

    assert not canary.exists()


def test_an_adapter_is_not_a_base(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "bert")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere/model"}')

    with pytest.raises(ModelError, match="holds an adapter"):
        load(folder, wanted("sequence_classification"))


def test_a_missing_base_weight_is_not_drawn_at_random(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "bert")
    model = load(folder, wanted("sequence_classification")).model
    state = {name: value for name, value in model.state_dict().items() if "layer.1" not in name}
    model.save_pretrained(folder, state_dict=state)

    with pytest.raises(ModelError, match=r"weights of a sequence_classification model are missing.*layer\.1"):
        load(folder, wanted("sequence_classification"))


def test_an_encoder_is_no_causal_language_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "bert")

    with pytest.raises(ModelError, match="causal_lm"):
        load(folder, wanted("causal_lm"))


def test_a_model_that_sees_later_tokens_is_no_causal_language_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "bert")
    config = load(folder, wanted("sequence_classification")).model.config
    BertLMHeadModel(config).save_pretrained(folder)

    with pytest.raises(ModelError, match="its predictions look at later tokens"):
        load(folder, wanted("causal_lm"))


def test_a_kind_without_such_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read for image_classification"):
        load(checkpoint(tmp_path, "llama"), wanted("image_classification"))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "bert")
    (folder / "model.safetensors").write_bytes(b"not tensors")

    with pytest.raises(ModelError, match="weights cannot be read"):
        load(folder, wanted("sequence_classification"))


def test_revision_rules(tmp_path: Path) -> None:
    folder, want = checkpoint(tmp_path, "bert"), wanted("sequence_classification")

    with pytest.raises(ModelError, match="is a local folder, which has none; remove it"):
        load(folder, want, revision=HUB_COMMIT)
    with pytest.raises(ModelError, match="a hub id needs revision = 40 hex digits"):
        load("owner/name", want)
    for path in ("./nowhere", "/no/such/folder", "a/b/c"):
        with pytest.raises(ModelError, match=r"no such folder$"):
            load(path, want)


@pytest.mark.parametrize("revision", ["main", "abc123", HUB_COMMIT.upper()])
def test_a_revision_is_a_whole_commit(revision: str) -> None:
    with pytest.raises(ValueError, match="revision"):
        pretrained.Options(path="owner/name", revision=revision)


def test_a_hub_out_of_reach_is_one_error() -> None:
    with pytest.raises(ModelError, match="owner/name: cannot be read for sequence_classification"):
        load("owner/name", wanted("sequence_classification"), revision=HUB_COMMIT)


def test_nothing_is_logged_and_the_settings_are_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path, "llama")
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    capfd.readouterr()

    with caplog.at_level(logging.INFO):
        load(folder, wanted("sequence_classification"))

    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == level
    assert transformers_logging.is_progress_bar_enabled() == bars


def rates(model: torch.nn.Module) -> set[float]:
    return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "vit"])
def test_dropout_is_the_checkpoints_own_or_what_is_asked(tmp_path: Path, architecture: str) -> None:
    folder, want = tmp_path / architecture, wanted(KIND_OF[architecture])
    options = tiny.Options(architecture=architecture, dropout=0.25)
    model = tiny.make(options).load(want).model
    model.save_pretrained(folder)
    if (tokenizer := tiny.make(options).load(want).tokenizer) is not None:
        tokenizer.save_pretrained(folder)
    image, text = torch.ones(2, 1, 8, 8), torch.ones(2, 6, dtype=torch.long)
    inputs = {"pixel_values": image} if architecture == "vit" else {"input_ids": text}

    def moves(model: torch.nn.Module) -> bool:
        """Whether training mode draws anything."""
        return not torch.equal(model.train()(**inputs).logits, model.eval()(**inputs).logits)

    own = load(folder, want).model
    without = pretrained.make(pretrained.Options(path=str(folder), dropout=0.0)).load(want).model
    other = pretrained.make(pretrained.Options(path=str(folder), dropout=0.5)).load(want).model
    assert rates(own) <= {0.25}
    assert rates(without) <= {0.0}
    assert rates(other) <= {0.5}
    assert moves(own)
    assert moves(other)
    assert not moves(without)
    assert base_hash(without, exclude=()) == base_hash(own, exclude=())


def test_a_model_that_has_no_dropout_is_told_so(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "llama")
    file = folder / "config.json"
    others = {key: value for key, value in json.loads(file.read_text()).items() if "dropout" not in key}
    file.write_text(json.dumps({**others, "model_type": "mamba"}))
    with pytest.raises(ModelError, match=r"model.dropout = 0.1: .* is a mamba, which has no dropout; leave it out"):
        pretrained.make(pretrained.Options(path=str(folder), dropout=0.1)).load(wanted("causal_lm"))
