"""Slots read off a peft state dict: the real names of peft, and what is refused."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from fedpeft.adapters.base import Algebra, pairs
from fedpeft.adapters.state_dict import slots_of
from fedpeft.errors import UnsupportedError


class Net(nn.Module):
    """A body to adapt, words to embed, and a head to train whole."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(11, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        """Return (n, 3)."""
        out: Tensor = self.head(self.body(self.words(words)))
        return out


def state_dict(**options: Any) -> dict[str, Tensor]:
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["body", "words"], modules_to_save=["head"], **options)
    found: dict[str, Tensor] = get_peft_model_state_dict(get_peft_model(Net(), config))  # type: ignore[arg-type]
    return found


def test_names_of_peft_become_pairs_and_heads() -> None:
    slots = slots_of(state_dict(), alpha=8)

    found = {pair.a.group: (pair.b.shape, pair.a.shape, pair.scale) for pair in pairs(slots)}
    assert found == {
        "base_model.model.body": ((4, 2), (2, 6), 4.0),
        "base_model.model.words": ((6, 2), (2, 11), 4.0),
    }
    heads = {slot.name: slot.shape for slot in slots if slot.algebra is Algebra.LINEAR}
    assert heads == {"base_model.model.head.weight": (3, 4), "base_model.model.head.bias": (3,)}
    assert [slot.name for slot in slots] == list(state_dict())


def test_a_name_may_hold_that_of_the_adapter() -> None:
    given = {f"m.q.lora_{role}.default.weight": torch.zeros(3, 3) for role in "AB"}
    (pair,) = pairs(slots_of(given, alpha=1))
    assert (pair.a.name, pair.b.name) == tuple(given)


def test_rslora_divides_by_the_root() -> None:
    (_, pair) = sorted(pairs(slots_of(state_dict(), alpha=8, rslora=True)), key=lambda pair: pair.a.group)
    assert pair.scale == pytest.approx(8 / 2**0.5)


def test_dora_magnitudes_are_no_linear_part() -> None:
    slots = slots_of(state_dict(use_dora=True), alpha=8)
    magnitudes = [slot for slot in slots if "magnitude" in slot.name]
    assert magnitudes
    assert {slot.algebra for slot in magnitudes} == {Algebra.NONLINEAR}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"q.lora_A.weight": torch.zeros(2, 3)}, r"layer 'q' has the factors \['A'\], expected one lora_A and one"),
        ({f"q.lora_A.{x}.weight": torch.zeros(2, 3) for x in "xy"}, r"factors \['A', 'A'\]"),
        ({"q.lora_A.weight": torch.zeros(2, 3), "q.lora_B.weight": torch.zeros(4, 3)}, r"\[4, 3\] and \[2, 3\]"),
        ({"q.lora_A.weight": torch.zeros(2, 3, 1, 1)}, r"shape \[2, 3, 1, 1\], expected a matrix"),
        ({"head.weight": torch.zeros(2, dtype=torch.float16)}, r"'head.weight' is torch.float16, expected torch.float"),
    ],
)
def test_what_has_no_product_is_refused_by_name(given: dict[str, Tensor], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        slots_of(given, alpha=8)
