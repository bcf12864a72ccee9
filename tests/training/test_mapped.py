"""Frozen weights in a file that processes share."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedpeft.errors import RunError
from fedpeft.training.mapped import map_weights, write_weights


class Model(nn.Module):
    """Frozen, trained, tied, empty, transposed and buffered tensors."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.frozen = nn.Parameter(torch.randn(3, 5, generator=generator), requires_grad=False)
        self.small = nn.Parameter(torch.randn(7, generator=generator).to(torch.bfloat16), requires_grad=False)
        self.trained = nn.Parameter(torch.randn(4, generator=generator))
        self.tied = self.frozen
        self.alias = nn.Parameter(self.trained.detach()[:2], requires_grad=False)
        self.turned = nn.Parameter(torch.randn(2, 6, generator=generator).t(), requires_grad=False)
        self.register_buffer("counts", torch.arange(9))
        self.register_buffer("nothing", torch.empty(0))


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_model_on_the_file_has_the_same_bits_at_places_as_torch_gives(tmp_path: Path) -> None:
    model, other = Model(), Model()
    with torch.no_grad():
        other.frozen.zero_()
        other.counts.zero_()  # type: ignore[operator, union-attr]
    before = bits(model)
    write_weights(model, tmp_path / "w")

    map_weights(model, tmp_path / "w")
    map_weights(other, tmp_path / "w")

    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor)
        assert torch.equal(other.state_dict()[name], tensor)
    for each in (model.frozen, model.small, model.get_buffer("counts")):
        assert each.data_ptr() % 64 == 0
    assert model.tied is model.frozen


def test_what_is_written_is_seen_by_nobody_else(tmp_path: Path) -> None:
    model, other = Model(), Model()
    write_weights(model, tmp_path / "w")
    file = (tmp_path / "w").read_bytes()
    map_weights(model, tmp_path / "w")
    map_weights(other, tmp_path / "w")

    with torch.no_grad():
        model.frozen.add_(1.0)

    assert torch.equal(other.frozen, Model().frozen)
    assert torch.equal(model.frozen, Model().frozen + 1.0)
    assert (tmp_path / "w").read_bytes() == file


def test_what_trains_stays_in_memory(tmp_path: Path) -> None:
    model = Model()
    places = {name: model.get_parameter(name).data_ptr() for name in ("trained", "alias", "turned")}
    write_weights(model, tmp_path / "w")
    map_weights(model, tmp_path / "w")
    assert {name: model.get_parameter(name).data_ptr() for name in places} == places


def test_only_one_file_holds_them(tmp_path: Path) -> None:
    """The storage is the whole file, 64 + 64 + 128 bytes, so the old tensors are free to go."""
    model = Model()
    write_weights(model, tmp_path / "w")
    map_weights(model, tmp_path / "w")
    assert model.frozen.untyped_storage().nbytes() == (tmp_path / "w").stat().st_size == 64 + 64 + 128
    assert model.small.untyped_storage().data_ptr() == model.frozen.untyped_storage().data_ptr()


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    write_weights(nn.Linear(2, 2).requires_grad_(False), tmp_path / "w")
    with pytest.raises(RunError, match="128 bytes of weights, expected 256"):
        map_weights(Model(), tmp_path / "w")


def test_a_model_without_frozen_tensors_has_an_empty_file(tmp_path: Path) -> None:
    write_weights(nn.Linear(2, 2), tmp_path / "w")
    map_weights(nn.Linear(2, 2), tmp_path / "w")
    assert (tmp_path / "w").stat().st_size == 0
