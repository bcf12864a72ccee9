"""Pretraining on the spot: the same bits everywhere, cached, checked when read, with a fresh head."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedpeft.errors import ModelError
from fedpeft.models.head import head_modules
from fedpeft.training import pretrain
from fedpeft.training.adapted import adapt
from tests.conftest import tiny

LABELS = ("0", "1", "2")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache of the machine out of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fedpeft" / "pretrained"


def weights(**changes: Any) -> dict[str, Tensor]:
    """Return the weights of the pretrained model, its adapter left out."""
    tables = {"pretrain": {"num_steps": 2, "batch_size": 8}, "pretrain_data": {"name": "digits", "classes": [3, 4]}}
    model = adapt(tiny(**{**tables, **changes}), LABELS).attached.model
    return {name: value.clone() for name, value in model.state_dict().items() if "lora" not in name}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert list(a) == list(b)
    return [name for name in a if torch.equal(a[name], b[name])]


def test_the_same_bits_are_trained_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = weights()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert equal(first, weights()) == list(first)
    assert torch.equal(before, torch.get_rng_state())
    (a,) = tmp_path.glob("cache/fedpeft/pretrained/*")
    (b,) = tmp_path.glob("elsewhere/fedpeft/pretrained/*")
    assert (a.name, a.read_bytes()) == (b.name, b.read_bytes())


def test_a_second_run_reads_what_the_first_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    first = weights()

    def trained(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(pretrain, "train_locally", trained)
    assert equal(first, weights()) == list(first)
    assert equal(first, weights(rounds={"num_rounds": 9}, adapter={"rank": 3})) == list(first)


def test_other_settings_are_trained_anew(cache: Path) -> None:
    weights()
    weights(pretrain={"num_steps": 1, "batch_size": 8})
    weights(seed=4)
    assert len(list(cache.iterdir())) == 3


def test_the_body_is_trained_and_the_head_is_fresh() -> None:
    model = adapt(tiny(), LABELS).attached.model
    fresh = {name: value for name, value in model.state_dict().items() if "lora" not in name}
    (head,) = head_modules(model)
    same = equal(fresh, weights())
    assert [name for name in fresh if name.startswith(head)] == same
    assert same


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [flipped, lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"x" * 99])
def test_a_damaged_cache_is_named_with_the_remedy(cache: Path, damage: Any) -> None:
    weights()
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=f"{path}: not the weights of this model; delete the file to train them again"):
        weights()
    path.unlink()
    weights()


def test_the_weights_of_another_model_are_refused(cache: Path) -> None:
    weights()
    (path,) = cache.iterdir()
    save_file({"classifier.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="not the weights of this model"):
        weights()


def test_nothing_half_written_is_left(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrain, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        weights()
    assert list(cache.iterdir()) == []
