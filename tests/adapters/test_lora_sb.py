"""lora_sb: bases of the frozen weight itself, made once by the server, and a core between them."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedpeft.adapters.base import Algebra, Attached
from fedpeft.adapters.lora_sb import Options, make
from fedpeft.adapters.plan import Plan
from fedpeft.errors import UnsupportedError
from tests.adapters.models import SAMPLES, WIDTH, build, random_state

everywhere = pytest.mark.parametrize("model", SAMPLES)


def planned(model: str, **options: Any) -> Plan:
    return make(Options(**options)).plan(build(model), seed=3)


def attach(model: str, **options: Any) -> Attached:
    adapter = make(Options(**options))
    return adapter.attach(build(model), planned(model, **options))


def in_slots_orientation(model: str, path: str) -> Any:
    weight = build(model).get_submodule(path).get_parameter("weight").detach().numpy().astype(np.float64)
    return weight.T if model == "gpt2" else weight


@everywhere
def test_bases_are_the_first_singular_vectors_of_each_weight(model: str) -> None:
    """Oracle: NumPy's eigenvectors of W W^T and W^T W, up to the sign, which is fixed."""
    plan = planned(model, rank=3)
    assert {name.rpartition(".")[0] for name in plan.tensors} == set(plan.values["targets"])
    for path in plan.values["targets"]:
        weight = in_slots_orientation(model, path)
        b, a = (plan.tensors[f"{path}.{role}"].numpy().astype(np.float64) for role in "BA")
        left = np.linalg.eigh(weight @ weight.T)[1][:, ::-1][:, :3]
        right = np.linalg.eigh(weight.T @ weight)[1][:, ::-1][:, :3]

        np.testing.assert_allclose(np.abs(np.sum(b * left, axis=0)), 1, atol=1e-5)
        np.testing.assert_allclose(np.abs(np.sum(a.T * right, axis=0)), 1, atol=1e-5)
        assert np.all(np.sum((b.T @ weight) * a, axis=1) > 0), "b_i^T W a_i is a singular value: signs go together"
        assert np.all(b[np.abs(b).argmax(axis=0), np.arange(3)] > 0)


def test_the_plan_is_the_same_each_time_and_hangs_on_no_seed_and_no_generator() -> None:
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        hashes.add(make(Options()).plan(build("bert"), seed=seed).hash)
        make(Options()).attach(build("bert"), planned("bert"))
        assert torch.equal(before, torch.get_rng_state())

    assert len(hashes) == 1


def test_clients_take_the_bases_of_the_plan_and_compute_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("bert", rank=2)
    monkeypatch.setattr(torch.linalg, "svd", None)

    attached = make(Options(rank=2)).attach(build("bert"), Plan.from_bytes(plan.to_bytes()))

    frozen = {bound.slot.name: bound.parameter for bound in attached.bound if bound.slot.algebra is Algebra.FROZEN}
    assert set(frozen) == set(plan.tensors)
    assert all(torch.equal(parameter, plan.tensors[name]) for name, parameter in frozen.items())


@everywhere
def test_only_cores_train_and_travel_from_zero(model: str) -> None:
    attached = attach(model, rank=4)

    assert set(attached.parameters()) == {spec.name for spec in attached.manifest()}
    assert {spec.shape for spec in attached.manifest()} == {(4, 4)}
    assert {(slot.role, slot.algebra) for slot in attached.slots if slot.travels} == {("core", Algebra.LINEAR)}
    assert not any(core.any() for core in attached.read().values())


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_the_adapted_layer_is_the_formula_by_hand(model: str) -> None:
    attached = attach(model, rank=2, scale=1.5)
    attached.write(random_state(attached, 1))
    path = attached.slots[0].group
    b, a = (planned(model, rank=2).tensors[f"{path}.{role}"] for role in "BA")
    layer, inputs = build(model).get_submodule(path), torch.randn(2, WIDTH)

    expected = layer(inputs) + 1.5 * inputs @ (b @ attached.read()[f"{path}.core"] @ a).T

    torch.testing.assert_close(attached.model.get_submodule(path)(inputs), expected, rtol=1e-5, atol=1e-5)


def test_a_rank_above_the_lesser_side_is_refused_with_both_numbers() -> None:
    with pytest.raises(UnsupportedError, match=r"adapter.rank = 17: expected <= 16, the lesser side of 'bert"):
        planned("bert", rank=17)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"scale": 0.0}, {"scale": -1.0}])
def test_options_have_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)
