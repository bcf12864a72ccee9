"""vera: two vectors a layer around one pair of random matrices that all layers share."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedpeft.adapters.base import Algebra, Attached
from fedpeft.adapters.plan import Plan
from fedpeft.adapters.vera import Options, make
from tests.adapters.models import SAMPLES, build, random_state

everywhere = pytest.mark.parametrize("model", SAMPLES)


def planned(model: str, **options: Any) -> Plan:
    return make(Options(**options)).plan(build(model), seed=3)


def attach(model: str, **options: Any) -> Attached:
    return make(Options(**options)).attach(build(model), planned(model, **options))


def exact(value: torch.Tensor) -> Any:
    return value.detach().numpy().astype(np.float64)


def weight(model: Any, path: str, name: str) -> Any:
    found = exact(model.get_submodule(path).get_parameter("weight"))
    return found.T if name == "gpt2" else found


def shared(attached: Attached, role: str) -> list[torch.Tensor]:
    return [bound.parameter for bound in attached.bound if bound.slot.role == role]


@everywhere
def test_all_layers_hold_parts_of_one_pair_in_memory_once(model: str) -> None:
    attached = attach(model, rank=5)
    for role in "AB":
        parts = shared(attached, role)
        assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
        widest = max(parts, key=torch.Tensor.numel)
        assert all(torch.equal(part, widest[: part.shape[0], : part.shape[1]]) for part in parts)
    assert {slot.role for slot in attached.slots if slot.algebra is Algebra.FROZEN} == {"A", "B"}
    assert {spec.name.rpartition(".")[2] for spec in attached.manifest()} == {"b", "d"}


@everywhere
def test_the_change_is_the_formula_by_hand(model: str) -> None:
    adapter, attached, base = make(Options(rank=5)), attach(model, rank=5), build(model)
    attached.write(state := random_state(attached, 1))
    frozen = {bound.slot.name: exact(bound.parameter) for bound in attached.bound if not bound.slot.travels}

    merged = adapter.merge(attached)

    for path in planned(model, rank=5).values["targets"]:
        b, d = (np.diag(exact(state[f"{path}.{role}"])) for role in "bd")
        expected = b @ frozen[f"{path}.B"] @ d @ frozen[f"{path}.A"]
        np.testing.assert_allclose(weight(merged, path, model) - weight(base, path, model), expected, atol=2e-6)


def test_the_pair_is_kaiming_uniform_and_hangs_on_the_seed_of_the_plan() -> None:
    for role, fan in (("A", 24), ("B", 256)):
        widest = max(shared(attach("bert"), role), key=torch.Tensor.numel)
        assert widest.abs().max() <= (6 / fan) ** 0.5
        assert float(widest.std()) == pytest.approx((2 / fan) ** 0.5, rel=0.1)
    plans = [make(Options()).plan(build("bert"), seed=seed) for seed in (1, 1, 2)]
    pairs = [shared(make(Options()).attach(build("bert"), plan), "A")[0] for plan in plans]
    assert torch.equal(pairs[0], pairs[1])
    assert not torch.equal(pairs[0], pairs[2])


def test_b_starts_at_zero_and_d_where_it_is_told() -> None:
    start = attach("bert", d_initial=0.25).read()
    assert {float(entry) for name, value in start.items() if name.endswith(".d") for entry in value} == {0.25}
    assert not any(value.any() for name, value in start.items() if name.endswith(".b"))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"d_initial": 0.0}])
def test_options_have_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)
