import pytest
import torch

from fedpeft.adapters.base import head_bounds
from fedpeft.adapters.plan import Plan
from fedpeft.errors import UnsupportedError, WireError
from fedpeft.tensors import Tensors
from tests.adapters.models import build


def test_factors_of_a_decomposition_travel_to_the_bit_in_any_order_and_layout() -> None:
    u, s, v = torch.linalg.svd(torch.arange(12.0).reshape(3, 4), full_matrices=False)
    plan = Plan(adapter="x", values={"kept": [2, 1]}, tensors=Tensors({"v": v.T, "u": u, "codes": s.to(torch.int8)}))

    received = Plan.from_bytes(plan.to_bytes())

    assert received.hash == plan.hash
    assert list(received.tensors) == ["codes", "u", "v"]
    assert torch.equal(received.tensors["v"], v.T)


def test_a_plan_of_other_values_has_another_hash() -> None:
    assert Plan(adapter="x", values={"rank": 1}).hash != Plan(adapter="x", values={"rank": 2}).hash


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, Plan(adapter="x", values={}).to_bytes()[:-3]])
def test_damaged_bytes_are_refused(damage: bytes) -> None:
    with pytest.raises(WireError, match="plan of"):
        Plan.from_bytes(damage)


def test_an_unknown_head_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="no head 'score'; at its top are: bert, dropout, classifier"):
        head_bounds(build("bert"), ["score"])
