"""svfit: only the first singular values of each frozen weight move, between its own singular vectors."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedpeft.adapters.base import Attached
from fedpeft.adapters.plan import Plan
from fedpeft.adapters.svfit import Options, make
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Tensors
from tests.adapters.models import SAMPLES, build, logits

everywhere = pytest.mark.parametrize("model", SAMPLES)


def planned(model: str, **options: Any) -> Plan:
    return make(Options(**options)).plan(build(model), seed=3)


def attach(model: str, **options: Any) -> Attached:
    return make(Options(**options)).attach(build(model), planned(model, **options))


def weight(model: Any, path: str, name: str) -> Any:
    found = model.get_submodule(path).get_parameter("weight").detach().numpy().astype(np.float64)
    return found.T if name == "gpt2" else found


@everywhere
def test_the_change_is_diagonal_in_the_weights_own_bases_and_zero_outside_them(model: str) -> None:
    """Oracle: NumPy's SVD of the base weight; plain LoRA is neither diagonal nor inside."""
    adapter, attached = make(Options(rank=3)), attach(model, rank=3)
    start = attached.read()
    moves = torch.tensor([0.5, -7.0, 0.25])
    attached.write(Tensors((name, value + moves if name.endswith("sigma") else value) for name, value in start.items()))
    paths = planned(model, rank=3).values["targets"]

    merged, base = adapter.merge(attached), build(model)

    for path in paths:
        u, s, vt = np.linalg.svd(weight(base, path, model), full_matrices=False)
        np.testing.assert_allclose(start[f"{path}.sigma"].numpy(), s[:3], rtol=1e-5)
        expected = u[:, :3] @ np.diag(moves.numpy()) @ vt[:3]
        np.testing.assert_allclose(weight(merged, path, model) - weight(base, path, model), expected, atol=2e-6)


@everywhere
def test_energy_takes_the_fewest_values_that_hold_the_share(model: str) -> None:
    base = build(model)
    for path, sigma in ((name, value) for name, value in attach(model, energy=0.9).read().items() if "sigma" in name):
        squares = np.linalg.svd(weight(base, path.removesuffix(".sigma"), model), compute_uv=False) ** 2
        shares, rank = np.cumsum(squares) / squares.sum(), len(sigma)
        assert shares[rank - 1] >= 0.9
        assert rank == 1 or shares[rank - 2] < 0.9


def test_all_energy_is_all_values() -> None:
    assert {len(value) for name, value in attach("bert", energy=1.0).read().items() if "sigma" in name} == {16}


def test_clients_decompose_nothing_and_the_plan_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("bert", rank=2)
    monkeypatch.setattr(torch.linalg, "svd", None)
    before = plan.hash

    attached = make(Options(rank=2)).attach(build("bert"), plan)
    attached.write(attached.read() * 2.0)

    assert plan.hash == before


@everywhere
def test_a_plan_from_the_wire_gives_the_same_logits_to_the_bit(model: str) -> None:
    """Strides of the server's own tensors must not show: what travelled is contiguous."""
    plan = planned(model)
    both = [make(Options()).attach(build(model), given) for given in (plan, Plan.from_bytes(plan.to_bytes()))]
    assert torch.equal(*(logits(attached.model, model) for attached in both))


def test_a_rank_above_the_lesser_side_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"adapter.rank = 17: expected <= 16"):
        planned("bert", rank=17)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"energy": 0.0}, {"energy": 1.1}, {"rank": 4, "energy": 0.9}])
def test_options_have_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)
