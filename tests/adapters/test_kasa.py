"""kasa: the weight without its smallest singular triplets, and three regularised factors beside it."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedpeft.adapters.base import Attached
from fedpeft.adapters.kasa import Options, make
from fedpeft.adapters.plan import Plan
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Tensors
from tests.adapters.models import SAMPLES, build, logits, random_state

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


def gap(state: Tensors, roles: str = "AB") -> float:
    """Sum over factors of ||A A^T - I|| and ||B^T B - I||, by hand."""
    total = 0.0
    for name, value in state.items():
        if name.endswith(tuple(f".{role}" for role in roles)):
            rows = exact(value).T if name.endswith(".B") else exact(value)
            total += float(np.sqrt(((rows @ rows.T - np.eye(len(rows))) ** 2).sum()))
    return total


@everywhere
def test_the_start_is_the_weight_without_its_smallest_triplets(model: str) -> None:
    merged, base = make(Options(rank=3)).merge(attach(model, rank=3)), build(model)
    for path in planned(model, rank=3).values["targets"]:
        u, s, vt = np.linalg.svd(weight(base, path, model), full_matrices=False)
        kept = len(s) - 3
        found = weight(merged, path, model)
        np.testing.assert_allclose(found, u[:, :kept] @ np.diag(s[:kept]) @ vt[:kept], atol=2e-6)
        assert np.linalg.matrix_rank(found, tol=1e-4) == kept


@everywhere
def test_the_merged_weight_is_the_formula_by_hand(model: str) -> None:
    attached, adapter, base = attach(model, rank=3, alpha=6.0), make(Options(rank=3, alpha=6.0)), build(model)
    attached.write(state := random_state(attached, 1))

    merged = adapter.merge(attached)

    for path in planned(model, rank=3).values["targets"]:
        u, s, vt = np.linalg.svd(weight(base, path, model), full_matrices=False)
        b, d, a = (exact(state[f"{path}.{role}"]) for role in "BdA")
        expected = (u[:, :-3] * s[:-3]) @ vt[:-3] + 2.0 * b @ np.diag(d) @ a
        np.testing.assert_allclose(weight(merged, path, model), expected, atol=1e-5)


def test_the_penalty_is_the_formula_by_hand_and_looks_at_no_data() -> None:
    adapter, attached = make(Options(beta=0.3, gamma=0.7)), attach("bert")
    attached.write(state := random_state(attached, 1))
    layers = len(planned("bert").values["targets"])
    squares = sum(float((exact(value) ** 2).sum()) for name, value in state.items() if name.endswith(".d"))

    penalty = adapter.penalty(attached)

    assert penalty.per_sample is None
    assert penalty.data_free is not None
    assert penalty.data_free.item() == pytest.approx((0.3 * squares + 0.7 * gap(state)) / layers, rel=1e-5)
    assert make(Options(beta=0, gamma=0)).penalty(attached).data_free is None


def test_training_with_gamma_leaves_less_than_half_the_gap() -> None:
    ends = {}
    for gamma in (0.0, 1.0):
        adapter, attached = make(Options(rank=4, gamma=gamma)), attach("bert", rank=4)
        optimizer = torch.optim.Adam(list(attached.parameters().values()), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            loss = (attached.model(**SAMPLES["bert"].inputs).logits - 5).square().mean()
            penalty = adapter.penalty(attached).data_free
            assert penalty is not None
            (loss + penalty).backward()
            optimizer.step()
        ends[gamma] = gap(attached.read())

    assert ends[1.0] < 0.5 * ends[0.0]


def test_the_start_hangs_on_the_plan_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned("bert").hash == planned("bert").hash
    assert make(Options()).plan(build("bert"), seed=4).hash != planned("bert").hash
    plan = planned("bert")
    monkeypatch.setattr(torch.linalg, "svd", None)
    before = plan.hash

    attached = make(Options()).attach(build("bert"), plan)
    attached.write(random_state(attached, 1))

    assert plan.hash == before


def test_b_starts_at_zero_a_within_the_bound_and_d_standard_normal() -> None:
    state = attach("bert").read()
    drawn = torch.cat([value for name, value in state.items() if name.endswith(".d")])
    assert not any(value.any() for name, value in state.items() if name.endswith(".B"))
    assert all(value.abs().max() <= value.shape[1] ** -0.5 for name, value in state.items() if name.endswith(".A"))
    assert abs(float(drawn.mean())) < 0.5
    assert 0.6 < float(drawn.std()) < 1.4


@everywhere
def test_a_plan_from_the_wire_gives_the_same_logits_to_the_bit(model: str) -> None:
    """Strides of the server's own tensors must not show: what travelled is contiguous."""
    plan = planned(model)
    both = [make(Options()).attach(build(model), given) for given in (plan, Plan.from_bytes(plan.to_bytes()))]
    assert torch.equal(*(logits(attached.model, model) for attached in both))


def test_a_rank_above_the_lesser_side_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"adapter.rank = 17: expected <= 16"):
        planned("bert", rank=17)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"beta": -1.0}, {"gamma": -1.0}])
def test_options_have_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)
