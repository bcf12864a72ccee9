"""sorsa: singular triplets that start as the weight's own and are brought back to orthonormal on the server."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpeft.adapters.base import Algebra, Attached, Slot
from fedpeft.adapters.plan import Plan
from fedpeft.adapters.sorsa import Options, make
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Tensors
from tests.adapters.models import SAMPLES, build, logits, random_state

everywhere = pytest.mark.parametrize("model", SAMPLES)


def planned(model: str, **options: Any) -> Plan:
    return make(Options(**options)).plan(build(model), seed=3)


def attach(model: str, **options: Any) -> Attached:
    return make(Options(**options)).attach(build(model), planned(model, **options))


def weight(model: Any, path: str, name: str) -> Any:
    found = model.get_submodule(path).get_parameter("weight").detach().numpy().astype(np.float64)
    return found.T if name == "gpt2" else found


def regulariser(state: Tensors) -> float:
    """R by hand: the mean over all U and V."""
    gaps = []
    for name, value in state.items():
        rows = value.numpy().astype(np.float64)
        if name.endswith((".U", ".V")):
            rows = rows.T if name.endswith(".U") else rows
            gaps.append(np.sqrt(((rows @ rows.T - np.eye(len(rows))) ** 2).sum()))
    return float(np.mean(gaps))


@everywhere
def test_the_merged_weight_is_the_rest_and_the_scaled_product(model: str) -> None:
    adapter, attached = make(Options(rank=3, scale=1.5)), attach(model, rank=3, scale=1.5)
    paths = planned(model, rank=3).values["targets"]
    attached.write(state := random_state(attached, 1))

    merged, base = adapter.merge(attached), build(model)

    for path in paths:
        u, s, vt = np.linalg.svd(weight(base, path, model), full_matrices=False)
        own = {role: state[f"{path}.{role}"].numpy().astype(np.float64) for role in "USV"}
        rest = weight(base, path, model) - 1.5 * u[:, :3] @ np.diag(s[:3]) @ vt[:3]
        expected = rest + 1.5 * own["U"] @ np.diag(own["S"]) @ own["V"]
        np.testing.assert_allclose(weight(merged, path, model), expected, atol=1e-5)


def test_the_penalty_is_the_mean_gap_of_all_factors_and_looks_at_no_data() -> None:
    adapter, attached = make(Options(regularisation=2.5)), attach("bert")
    attached.write(state := random_state(attached, 1))

    penalty = adapter.penalty(attached)

    assert penalty.per_sample is None
    assert penalty.data_free is not None
    assert penalty.data_free.item() == pytest.approx(2.5 * regulariser(state), rel=1e-5)
    assert make(Options(regularisation=0)).penalty(attached).data_free is None


def test_training_with_the_penalty_leaves_less_than_half_the_gap() -> None:
    ends = {}
    for strength in (0.0, 13.3):
        adapter, attached = make(Options(rank=4, regularisation=strength)), attach("bert", rank=4)
        optimizer = torch.optim.SGD(list(attached.parameters().values()), lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            loss = (attached.model(**SAMPLES["bert"].inputs).logits - 5).square().mean()
            penalty = adapter.penalty(attached).data_free
            (loss if penalty is None else loss + penalty).backward()
            assert all(
                bool(value.grad.isfinite().all()) for value in attached.parameters().values() if value.grad is not None
            )
            optimizer.step()
        ends[strength] = regulariser(attached.read())

    assert ends[13.3] < 0.5 * ends[0.0]


def slots(group: str, *shapes: tuple[int, ...]) -> list[Slot]:
    return [
        Slot(name=f"{group}.{role}", shape=shape, algebra=Algebra.NONLINEAR, group=group, role=role)
        for role, shape in zip("VSU", shapes, strict=True)
    ]


@settings(max_examples=25, deadline=None)
@given(d_out=st.integers(1, 12), d_in=st.integers(1, 12), rank=st.integers(1, 8), seed=st.integers(0, 999))
def test_retraction_keeps_the_product_and_makes_the_factors_orthonormal(
    d_out: int, d_in: int, rank: int, seed: int
) -> None:
    """Any signs and sizes of S, U and V; the head is left alone."""
    rank, draw = min(rank, d_out, d_in), np.random.default_rng(seed)
    v, s, u = (draw.normal(size=shape).astype(np.float32) for shape in ((rank, d_in), (rank,), (d_out, rank)))
    given_ = Tensors({"x.V": torch.tensor(v), "x.S": torch.tensor(s), "x.U": torch.tensor(u), "head": torch.ones(2)})
    head = Slot(name="head", shape=(2,), algebra=Algebra.LINEAR, group="head", role="head")

    found = make(Options()).retract([*slots("x", v.shape, s.shape, u.shape), head], given_)

    assert found.manifest() == given_.manifest()
    assert torch.equal(found["head"], given_["head"])
    new = {role: found[f"x.{role}"].numpy().astype(np.float64) for role in "USV"}
    before = u.astype(np.float64) @ np.diag(s.astype(np.float64)) @ v.astype(np.float64)
    after = new["U"] @ np.diag(new["S"]) @ new["V"]
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    np.testing.assert_allclose(new["U"].T @ new["U"], np.eye(rank), atol=1e-5)
    np.testing.assert_allclose(new["V"] @ new["V"].T, np.eye(rank), atol=1e-5)


@everywhere
def test_retraction_leaves_the_start_where_it_is_and_the_function_of_any_state(model: str) -> None:
    adapter, attached = make(Options()), attach(model)
    start = attached.read()
    for name, value in adapter.retract(attached.slots, start).items():
        torch.testing.assert_close(value, start[name], rtol=0, atol=1e-4)
    attached.write(state := random_state(attached, 1))
    expected = logits(attached.model, model)

    attached.write(adapter.retract(attached.slots, state))

    torch.testing.assert_close(logits(attached.model, model), expected, rtol=1e-4, atol=1e-4)


def test_clients_decompose_nothing_and_the_plan_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("bert")
    monkeypatch.setattr(torch.linalg, "svd", None)
    before = plan.hash

    attached = make(Options()).attach(build("bert"), plan)
    attached.write(random_state(attached, 1))

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


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"scale": 0.0}, {"regularisation": -1.0}])
def test_options_have_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)
