"""Every adapter in the folder, on every architecture: a new file is tested by being there."""

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import fedpeft.adapters
from fedpeft import plugins
from fedpeft.adapters.base import Adapter, Algebra, Attached, head_bounds, pairs
from fedpeft.adapters.plan import Plan
from fedpeft.errors import TensorMismatchError, UnsupportedError
from fedpeft.seeds import generator
from fedpeft.tensors import Tensors
from tests.adapters.models import SAMPLES, build, logits, own_slots, random_state, statistics
from tests.conformance.adapters_promised import PROMISES
from tests.conformance.promise import layers_of

NAMES = plugins.names("adapter")
SHIFTING = {name for name, promise in PROMISES.items() if promise.shifts}
"""Their frozen weights may be given a residual; the others refuse."""
everywhere = pytest.mark.parametrize("model", SAMPLES)
every_adapter = pytest.mark.parametrize("name", NAMES)


def adapter_of(name: str) -> Adapter:
    module = plugins.load("adapter", name)
    made: Adapter = module.make(module.Options(**PROMISES[name].options))
    return made


def planned(name: str, model: str) -> Plan:
    adapter = adapter_of(name)
    if model in PROMISES[name].refuses:
        with pytest.raises(UnsupportedError, match=r"; use adapter '\w+'"):
            adapter.plan(build(model), seed=5, statistics=statistics(adapter, model))
        pytest.skip(f"{name} refuses {model}, as it promises")
    return adapter.plan(build(model), seed=5, statistics=statistics(adapter, model))


def attach(name: str, model: str, plan: Plan | None = None) -> Attached:
    base = build(model)
    attached = adapter_of(name).attach(base, plan or planned(name, model))
    return attached.with_bound(head_bounds(base, SAMPLES[model].head))


def merged_weights(name: str, model: str, state: Tensors) -> dict[str, Tensor]:
    attached = attach(name, model)
    attached.write(state)
    return dict(adapter_of(name).merge(attached).state_dict())


def test_the_sweep_covers_the_folder() -> None:
    folder = Path(fedpeft.adapters.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")} - {
        "base",
        "calibration",
        "paths",
        "plan",
        "slots",
        "state_dict",
    }

    assert set(NAMES) == files == set(PROMISES)
    assert list(PROMISES) == sorted(PROMISES)
    assert all(plugins.describe("adapter").values())


@everywhere
@every_adapter
def test_only_the_slots_and_the_head_train(name: str, model: str) -> None:
    attached = attach(name, model)

    training = {id(parameter) for parameter in attached.model.parameters() if parameter.requires_grad}
    assert training == {id(parameter) for parameter in attached.parameters().values()}
    assert {slot.group for slot in attached.slots if slot.role == "head"} == set(SAMPLES[model].head)
    assert len({slot.name for slot in attached.slots}) == len(attached.slots)
    assert not any(module.training for module in attached.model.modules())


@everywhere
@every_adapter
def test_the_adapted_model_starts_as_its_base(name: str, model: str) -> None:
    atol = PROMISES[name].start
    torch.testing.assert_close(logits(attach(name, model).model, model), logits(build(model), model), rtol=0, atol=atol)


@everywhere
@every_adapter
def test_as_many_numbers_train_as_the_formula_says(name: str, model: str) -> None:
    attached = attach(name, model)

    own = {slot.name for slot in own_slots(attached)}
    training = sum(value.numel() for slot, value in attached.parameters().items() if slot in own)

    assert training == PROMISES[name].count(layers_of(build(model)))
    assert sum(spec.num_elements for spec in attached.manifest() if spec.name in own) == training


@everywhere
@every_adapter
def test_slots_can_be_written_and_read_back(name: str, model: str) -> None:
    attached = attach(name, model)
    state = random_state(attached, 1)

    attached.write(state)

    assert attached.read().digest() == state.digest()
    assert attached.read().manifest() == attached.manifest()


@every_adapter
@pytest.mark.parametrize("damage", ["name", "shape", "dtype", "missing", "extra", "order"])
def test_a_wrong_state_is_refused_and_nothing_is_written(name: str, damage: str) -> None:
    attached = attach(name, "bert")
    before = attached.read()
    entries = list(random_state(attached, 1).items())
    (last, value), rest = entries[-1], entries[:-1]
    wrong = {
        "name": [*rest, (last + "x", value)],
        "shape": [*rest, (last, value.unsqueeze(0))],
        "dtype": [*rest, (last, value.double())],
        "missing": rest,
        "extra": [*entries, ("extra", value)],
        "order": [*entries[1:], entries[0]],
    }[damage]

    with pytest.raises(TensorMismatchError, match="adapter: tensor"):
        attached.write(Tensors(wrong))

    assert attached.read().digest() == before.digest()


@everywhere
@every_adapter
def test_equal_plans_give_equal_bits_whatever_the_global_generator(name: str, model: str) -> None:
    plan = planned(name, model)
    states = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            states.append(adapter_of(name).attach(build(model), plan).read())
            assert torch.equal(torch.get_rng_state(), before)

    assert states[0].digest() == states[1].digest()


@everywhere
@every_adapter
def test_a_plan_survives_the_wire(name: str, model: str) -> None:
    plan = planned(name, model)

    received = Plan.from_bytes(plan.to_bytes())

    assert received.hash == plan.hash
    assert attach(name, model, received).manifest() == attach(name, model, plan).manifest()
    assert attach(name, model, received).read().digest() == attach(name, model, plan).read().digest()


@every_adapter
def test_a_plan_for_another_model_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="which GPT2LMHeadModel does not have"):
        adapter_of(name).attach(build("gpt2"), planned(name, "bert"))


@everywhere
@every_adapter
def test_merging_gives_a_plain_model_of_the_same_function_or_refuses(name: str, model: str) -> None:
    attached = attach(name, model)
    attached.write(random_state(attached, 1))
    adapted = logits(attached.model, model)
    try:
        plain = adapter_of(name).merge(attached)
    except UnsupportedError:
        assert {slot.algebra for slot in own_slots(attached)} == {Algebra.NONLINEAR}
        return

    torch.testing.assert_close(logits(plain, model), adapted, rtol=1e-5, atol=1e-5)
    assert [type(module) for module in plain.modules()] == [type(module) for module in build(model).modules()]
    assert plain.state_dict().keys() == build(model).state_dict().keys()
    assert "peft_config" not in vars(plain)
    assert not any(isinstance(module, BaseTunerLayer) for module in plain.modules())


@everywhere
@every_adapter
def test_gradients_reach_every_slot(name: str, model: str) -> None:
    attached = attach(name, model)
    attached.write(random_state(attached, 1))

    attached.model(**SAMPLES[model].inputs).logits.square().sum().backward()

    gradients = {slot: parameter.grad for slot, parameter in attached.parameters().items()}
    silent = [slot for slot, gradient in gradients.items() if gradient is None or not bool(gradient.abs().sum() > 0)]
    assert not silent


@everywhere
@every_adapter
def test_the_declared_algebra_holds_on_two_random_states(name: str, model: str) -> None:
    attached = attach(name, model)
    algebra = {slot.algebra for slot in own_slots(attached) if slot.travels}
    start = attached.read()
    one, two = random_state(attached, 1), random_state(attached, 2)
    if algebra == {Algebra.LINEAR}:
        weights = [merged_weights(name, model, state) for state in (one, two, (one + two) * 0.5)]
        for key, mean in weights[2].items():
            torch.testing.assert_close((weights[0][key] + weights[1][key]) / 2, mean, rtol=1e-5, atol=1e-6)
    elif algebra == {Algebra.BILINEAR}:
        heads = [slot.name for slot in attached.slots if slot.role == "head"]
        first = merged_weights(name, model, start.replace(one.select(heads)))
        assert_products(attached, start, one, first, merged_weights(name, model, one))
    else:
        assert Algebra.NONLINEAR in algebra
        assert_not_linear(attached, model, one, two)


def assert_products(
    attached: Attached, start: Tensors, state: Tensors, first: dict[str, Tensor], merged: dict[str, Tensor]
) -> None:
    """Weights change by that of scale * B @ A where a pair says so, and nowhere else."""
    expected = {name: value.clone() for name, value in first.items()}
    for pair in pairs(attached.slots):
        before, after = (at[pair.b.name] @ at[pair.a.name] for at in (start, state))
        change = pair.scale * (after - before)
        keeps_transposed = expected[f"{pair.b.group}.weight"].shape != change.shape or isinstance(
            plain(attached, pair.b.group), Conv1D
        )
        expected[f"{pair.b.group}.weight"] += change.T if keeps_transposed else change
    assert len(pairs(attached.slots)) * 2 == len(own_slots(attached))
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-5, atol=1e-5)


def plain(attached: Attached, group: str) -> nn.Module:
    """Return the layer under an adapted one."""
    layer = attached.model.get_submodule(group)
    found: nn.Module = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    return found


def assert_not_linear(attached: Attached, model: str, one: Tensors, two: Tensors) -> None:
    found = []
    for state in (one, two, (one + two) * 0.5):
        attached.write(state)
        found.append(logits(attached.model, model))
    assert not torch.allclose((found[0] + found[1]) / 2, found[2], atol=1e-3)


@everywhere
@every_adapter
def test_the_saved_folder_gives_the_same_logits_in_peft_or_saving_refuses(
    name: str, model: str, tmp_path: Path
) -> None:
    attached, plan = attach(name, model), planned(name, model)
    attached.write(random_state(attached, 1))
    try:
        adapter_of(name).save(attached, plan, tmp_path, base="some/base", revision="abc")
    except UnsupportedError:
        assert not list(tmp_path.iterdir())
        return

    loaded = PeftModel.from_pretrained(build(model), str(tmp_path))

    atol = PROMISES[name].saved
    torch.testing.assert_close(logits(loaded, model), logits(attached.model, model), rtol=0, atol=atol)
    config = loaded.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == ("some/base", "abc")
    expected = {"bert": "SEQ_CLS", "llama_classifier": "SEQ_CLS", "llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM"}
    assert config.task_type == expected.get(model)


def residuals_of(attached: Attached, seed: int) -> dict[str, Tensor]:
    return {
        pair.b.group: 0.3 * torch.randn(pair.b.shape[0], pair.a.shape[1], generator=generator(seed, pair.b.group))
        for pair in pairs(attached.slots)
    }


@every_adapter
def test_frozen_weights_take_a_residual_or_the_refusal_names_the_remedy(name: str) -> None:
    attached, adapter = attach(name, "bert"), adapter_of(name)
    if name in SHIFTING:
        adapter.shift(attached, residuals_of(attached, 1))
        return
    with pytest.raises(UnsupportedError, match=r"keeps its frozen weights .* use adapter 'lora'$"):
        adapter.shift(attached, {})


@everywhere
@pytest.mark.parametrize("name", sorted(SHIFTING))
def test_a_residual_is_w_plus_it_by_hand_and_set_anew_each_time_without_drift(name: str, model: str) -> None:
    attached, adapter, plain = attach(name, model), adapter_of(name), build(model)
    one, two = residuals_of(attached, 1), residuals_of(attached, 2)
    none = {group: torch.zeros_like(residual) for group, residual in one.items()}
    adapter.shift(attached, one)
    first = logits(attached.model, model)

    for _ in range(20):
        adapter.shift(attached, two)
        adapter.shift(attached, one)

    assert torch.equal(logits(attached.model, model), first)
    for group, residual in one.items():
        layer = plain.get_submodule(group)
        layer.get_parameter("weight").data += residual.T if isinstance(layer, Conv1D) else residual
    torch.testing.assert_close(first, logits(plain, model), rtol=0, atol=1e-5)
    adapter.shift(attached, none)
    assert torch.equal(logits(attached.model, model), logits(attach(name, model).model, model))


@everywhere
@pytest.mark.parametrize("name", sorted(SHIFTING))
@pytest.mark.parametrize("rank", [0, 3, 99])
def test_a_residual_is_in_the_merged_weights_and_in_the_folder_of_peft(
    name: str, model: str, rank: int, tmp_path: Path
) -> None:
    """On the plain base, however it is trained: rank 0 is no residual, 99 is more than any side."""
    attached, adapter = attach(name, model), adapter_of(name)
    attached.write(random_state(attached, 1))
    cut = {
        group: full if rank > min(full.shape) else full[:, :rank] @ full[:rank]
        for group, full in residuals_of(attached, 1).items()
    }
    adapter.shift(attached, cut)
    expected = logits(attached.model, model)

    adapter.save(attached, planned(name, model), tmp_path, base="some/base", revision="abc")
    loaded = PeftModel.from_pretrained(build(model), str(tmp_path))

    atol = max(1e-5, PROMISES[name].saved)
    torch.testing.assert_close(logits(loaded, model), expected, rtol=0, atol=atol * max(1, float(expected.abs().max())))
    for pair in pairs(attached.slots):
        sides = (pair.b.shape[0], pair.a.shape[1])
        layer = loaded.base_model.model.get_submodule(pair.b.group)
        started = pair.a.shape[0] if PROMISES[name].start else 0
        assert layer.r["default"] == pair.a.shape[0] + min(rank + started, *sides)
        assert layer.scaling["default"] == 1.0
    torch.testing.assert_close(logits(adapter.merge(attached), model), expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", sorted(SHIFTING))
@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "transposed", "dtype"])
def test_wrong_residuals_are_refused_by_name_and_nothing_is_written(name: str, damage: str) -> None:
    attached = attach(name, "bert")
    given, before = residuals_of(attached, 1), logits(attached.model, "bert")
    wide = next(group for group in given if group.endswith("intermediate.dense"))
    bad = given.pop(wide)
    changed = {
        "missing": {},
        "extra": {wide: bad, "elsewhere": bad},
        "shape": {wide: bad[:, :-1]},
        "transposed": {wide: bad.T},
        "dtype": {wide: bad.to(torch.float64)},
    }[damage]

    with pytest.raises(TensorMismatchError, match="elsewhere" if damage == "extra" else re.escape(wide)):
        adapter_of(name).shift(attached, {**given, **changed})

    assert torch.equal(logits(attached.model, "bert"), before)
