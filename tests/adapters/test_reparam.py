"""NeuroAda, S2FT, PEQA and DoRA against NumPy in float64, by hand, and each by what no other method would pass."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters import dora, neuroada, peqa, s2ft
from fedpeft.adapters._packed import STORED, packed, stored_weights, unpacked
from fedpeft.adapters.base import Attached
from fedpeft.adapters.plan import Plan
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import generator
from tests.adapters.models import BLOCKS, SAMPLES, WIDTH, build, logits, random_state

Matrix = npt.NDArray[np.float64]
MODELS = ["bert", "gpt2", "llama", "vit"]


def attached_to(module: Any, model: str, **options: Any) -> tuple[Any, Plan, Attached]:
    adapter = module.make(module.Options(**options))
    plan = adapter.plan(build(model), seed=3)
    return adapter, plan, adapter.attach(build(model), plan)


def weights(model: nn.Module, paths: list[str]) -> dict[str, Matrix]:
    found = {path: model.get_submodule(path) for path in paths}
    return {
        path: (layer.get_parameter("weight").T if isinstance(layer, Conv1D) else layer.get_parameter("weight"))
        .detach()
        .double()
        .numpy()
        for path, layer in found.items()
    }


@pytest.mark.parametrize("model", MODELS)
def test_neuroada_changes_the_k_largest_entries_of_every_row_and_no_other(model: str) -> None:
    adapter, plan, attached = attached_to(neuroada, model, inputs=3)
    attached.write(random_state(attached, 1))
    state, adapted = attached.read(), logits(attached.model, model)

    plain = adapter.merge(attached)

    assert torch.equal(logits(plain, model), adapted)
    merged = weights(plain, plan.values["targets"])
    for path, before in weights(build(model), plan.values["targets"]).items():
        want = before.copy()
        for row in range(len(before)):
            order = sorted(range(before.shape[1]), key=lambda column: (-abs(before[row, column]), column))
            for place, column in enumerate(sorted(order[:3])):
                want[row, column] += float(state[f"{path}.addends"][row, place])
        assert ((merged[path] != before).sum(axis=1) == 3).all()
        np.testing.assert_allclose(merged[path], want, atol=1e-6)


def test_ties_go_to_the_lowest_column() -> None:
    weight = torch.tensor([[1.0, -2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert neuroada.largest(weight, 2).tolist() == [[1, 2], [0, 1]]


def test_more_inputs_than_a_layer_has_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"adapter.inputs = 17: expected <= 16"):
        attached_to(neuroada, "bert", inputs=17)


@pytest.mark.parametrize("model", MODELS)
def test_s2ft_changes_whole_heads_and_channels_and_nothing_else(model: str) -> None:
    adapter, plan, attached = attached_to(s2ft, model, heads=0.5, channels=0.1)
    attached.write(random_state(attached, 1))
    before = {name: value.clone() for name, value in build(model).state_dict().items()}

    merged = adapter.merge(attached)

    paths = plan.values["targets"]
    assert len(paths) == 2 * BLOCKS
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{path}.weight" for path in paths}
    for path, after in weights(merged, paths).items():
        columns = np.flatnonzero((after != weights(build(model), [path])[path]).any(axis=0))
        assert columns.tolist() == plan.tensors[path].tolist()
        if after.shape[1] == WIDTH:
            assert columns.tolist() in ([*range(8)], [*range(8, 16)]), "one of two heads, whole"
        else:
            assert len(columns) == 2


@pytest.mark.parametrize(("model", "feeding"), [("bert", 1), ("gpt2", 1), ("llama", 2), ("vit", 1)])
def test_s2ft_with_inner_changes_the_rows_that_make_the_chosen_channels_too(model: str, feeding: int) -> None:
    adapter, plan, attached = attached_to(s2ft, model, heads=0, channels=0.1, inner=True)
    attached.write(random_state(attached, 1))

    paths = plan.values["targets"]
    after, before = weights(adapter.merge(attached), paths), weights(build(model), paths)

    assert len(plan.values["rows"]) == feeding * BLOCKS
    assert len(paths) == (feeding + 1) * BLOCKS
    back = [path for path in paths if path not in plan.values["rows"]]
    for number, path in enumerate(back):
        channels = np.flatnonzero((after[path] != before[path]).any(axis=0)).tolist()
        assert len(channels) == 2
        for feeds in plan.values["rows"][number::BLOCKS]:
            moved = after[feeds] != before[feeds]
            assert np.flatnonzero(moved.any(axis=1)).tolist() == channels
            assert moved[channels].all()


def test_inner_rows_without_channels_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"adapter.inner = true: expected channels > 0 \(channels = 0.0\)"):
        s2ft.make(s2ft.Options(channels=0, inner=True)).plan(build("bert"), seed=1)


def test_other_seeds_draw_other_channels_and_nothing_to_train_is_refused() -> None:
    adapter = s2ft.make(s2ft.Options(channels=0.5))
    hashes = {adapter.plan(build("bert"), seed=seed).hash for seed in (1, 2, 2)}
    assert len(hashes) == 2
    with pytest.raises(UnsupportedError, match="nothing would train"):
        s2ft.make(s2ft.Options(heads=0, channels=0)).plan(build("bert"), seed=1)


def quantised_by_hand(weight: Matrix, bits: int, group: int) -> tuple[Matrix, Matrix]:
    """Return scales and codes, entry by entry."""
    d_out, d_in = weight.shape
    scales, codes = np.zeros((d_out, d_in // group)), np.zeros_like(weight)
    for row in range(d_out):
        for number in range(d_in // group):
            part = weight[row, number * group : (number + 1) * group]
            least, greatest = part.min(), part.max()
            scale = (greatest - least) / (2**bits - 1)
            if greatest == least:
                scale = abs(least) or 1.0
                code = np.full(group, np.sign(least))
            else:
                zero = np.round(-least / scale)
                code = np.clip(np.round(part / scale) + zero, 0, 2**bits - 1) - zero
            scales[row, number] = scale
            codes[row, number * group : (number + 1) * group] = code
    return scales, codes


@settings(max_examples=40, deadline=None)
@given(
    d_out=st.integers(1, 6),
    groups=st.integers(1, 3),
    group=st.integers(1, 5),
    bits=st.integers(2, 8),
    flat=st.booleans(),
    seed=st.integers(0, 99),
)
def test_codes_and_scales_are_those_of_a_loop(
    d_out: int, groups: int, group: int, bits: int, flat: bool, seed: int
) -> None:
    weight = torch.randn(d_out, groups * group, generator=generator(seed, "w"), dtype=torch.float64)
    weight = torch.full_like(weight, -0.75) if flat else weight

    found = peqa.quantised(weight, bits=bits, group_size=group)
    scales, codes = quantised_by_hand(weight.numpy(), bits, group)

    np.testing.assert_allclose(found.scales.double().numpy(), scales, rtol=1e-6)
    assert np.array_equal(found.codes.numpy(), codes)
    error = np.abs(np.repeat(scales, group, axis=1) * codes - weight.numpy())
    assert (error <= np.repeat(scales, group, axis=1) * (1.0 + 1e-9)).all()


def test_codes_far_from_zero_are_kept_whole() -> None:
    """Levels of a narrow group far from zero are many steps away: more than 16 bits hold."""
    weight = torch.tensor([[0.5, 0.50001], [-0.5, -0.5 - 2**-23]], dtype=torch.float64)

    found = peqa.quantised(weight, bits=8, group_size=2)
    scales, codes = quantised_by_hand(weight.numpy(), 8, 2)

    assert np.array_equal(found.codes.numpy(), codes)
    assert codes[1, 1] == -255 * (2**22 + 1)
    np.testing.assert_allclose(scales * codes, weight.numpy(), rtol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_after_training_each_row_has_at_most_two_to_the_b_values_on_a_grid(model: str) -> None:
    adapter, plan, attached = attached_to(peqa, model, bits=2)
    attached.write(random_state(attached, 1))
    state = attached.read()

    for path, after in weights(adapter.merge(attached), plan.values["targets"]).items():
        assert max(len(np.unique(row)) for row in after) <= 4
        steps = after / state[f"{path}.scales"].double().numpy()
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)


def test_training_the_scales_closes_half_the_gap_that_rounding_opened_and_moves_no_code() -> None:
    _, plan, attached = attached_to(peqa, "llama", bits=2)
    path = plan.values["targets"][0]
    wanted = logits(build("llama"), "llama")
    codes = attached.model.get_submodule(path).parametrizations.weight[0].function.codes.clone()  # type: ignore[union-attr, index, operator]

    def gap() -> torch.Tensor:
        found: torch.Tensor = (attached.model(**SAMPLES["llama"].inputs).logits - wanted).square().mean()
        return found

    opened, optimizer = gap().item(), torch.optim.Adam(attached.parameters().values(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        gap().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    assert gap().item() < 0.5 * opened
    assert torch.equal(attached.model.get_submodule(path).parametrizations.weight[0].function.codes, codes)  # type: ignore[union-attr, index]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("bits", "group"), [(2, None), (3, 4), (4, 8), (8, None)])
def test_stored_weights_are_the_trained_ones_in_b_sixteenths_of_float16(
    tmp_path: Path, model: str, bits: int, group: int | None
) -> None:
    adapter, plan, attached = attached_to(peqa, model, bits=bits, group_size=group)
    attached.write(random_state(attached, 1))

    adapter.store(attached, plan, tmp_path)

    trained, stored = weights(adapter.merge(attached), plan.values["targets"]), stored_weights(tmp_path, bits=bits)
    parts = load_file(tmp_path / STORED)
    for path, weight in trained.items():
        np.testing.assert_array_equal(stored[path].double().numpy(), weight)
        assert parts[f"{path}.codes"].nbytes == math.ceil(bits / 16 * weight.size * 2)


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_packed_numbers_come_back_and_those_too_large_are_refused(bits: int) -> None:
    numbers = torch.arange(7) % 2**bits
    assert torch.equal(unpacked(packed(numbers, bits=bits), bits=bits, shape=(7,)), numbers)
    with pytest.raises(ValueError, match=f"expected 0 to {2**bits - 1}"):
        packed(torch.tensor([2**bits]), bits=bits)
    with pytest.raises(ValueError, match="bytes: expected"):
        unpacked(torch.zeros(99, dtype=torch.uint8), bits=bits, shape=(7,))


def test_eight_bits_start_close_to_the_base_and_two_do_not() -> None:
    gaps = {}
    for bits in (2, 8):
        adapter, plan, attached = attached_to(peqa, "bert", bits=bits)
        merged = weights(adapter.merge(attached), plan.values["targets"])
        base = weights(build("bert"), plan.values["targets"])
        gaps[bits] = max(float(np.abs(merged[path] - base[path]).max() / np.ptp(base[path])) for path in merged)
    assert gaps[8] < 1 / 255
    assert gaps[2] > 0.05


def test_codes_of_another_weight_and_groups_that_do_not_fit_are_refused() -> None:
    adapter, plan, _ = attached_to(peqa, "bert")
    other = build("bert")
    with torch.no_grad():
        other.get_submodule(plan.values["targets"][0]).get_parameter("weight").mul_(-1.7)
    with pytest.raises(UnsupportedError, match="are not those of the plan"):
        adapter.attach(other, plan)
    with pytest.raises(UnsupportedError, match=r"adapter.group_size = 3: expected a divisor of 16"):
        attached_to(peqa, "bert", group_size=3)


@pytest.mark.parametrize("model", MODELS)
def test_dora_is_length_times_direction_and_its_norm_is_a_constant_in_the_gradient(model: str) -> None:
    adapter, plan, attached = attached_to(dora, model, rank=2, alpha=6.0)
    base = weights(build(model), plan.values["targets"])
    for path, before in base.items():
        length = attached.read()[f"{path}.lora_magnitude_vector"].double().numpy()
        np.testing.assert_allclose(length[:, 0], np.sqrt((before**2).sum(axis=1)), rtol=1e-6)
    attached.write(random_state(attached, 1))
    state = {name: value.double().numpy() for name, value in attached.read().items()}
    path = plan.values["targets"][0]
    layer = attached.model.get_submodule(path)
    computed = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    upstream = torch.randn(computed.shape, generator=generator(4, "g"))
    (computed * upstream).sum().backward()

    b, a, m = (state[f"{path}.{name}"] for name in ("lora_B", "lora_A", "lora_magnitude_vector"))
    turned = base[path] + 3.0 * b @ a
    norm = np.sqrt((turned**2).sum(axis=1, keepdims=True))
    gradient = attached.parameters()[f"{path}.lora_B"].grad
    assert gradient is not None
    want = 3.0 * (m / norm * upstream.double().numpy()) @ a.T
    np.testing.assert_allclose(gradient.double().numpy(), want, rtol=1e-4, atol=1e-5)

    for target, after in weights(adapter.merge(attached), plan.values["targets"]).items():
        b, a, m = (state[f"{target}.{name}"] for name in ("lora_B", "lora_A", "lora_magnitude_vector"))
        turned = base[target] + 3.0 * b @ a
        np.testing.assert_allclose(after, m * turned / np.sqrt((turned**2).sum(axis=1, keepdims=True)), atol=1e-5)


def test_dora_refuses_a_neuron_without_direction() -> None:
    model = build("bert")
    path = dora.make(dora.Options()).plan(model, seed=1).values["targets"][0]
    with torch.no_grad():
        model.get_submodule(path).get_parameter("weight")[5] = 0.0
    with pytest.raises(UnsupportedError, match=f"row 5 of {path!r} is zero"):
        dora.make(dora.Options()).plan(model, seed=1)
