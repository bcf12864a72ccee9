"""Where PiSSA, SoMA, LoRA-GA and CorDA start, against NumPy in float64; LoRA under their names would fail here."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters import corda, lora_ga, pissa, soma
from fedpeft.adapters._started import Started
from fedpeft.adapters.base import Attached, Step
from fedpeft.adapters.calibration import Batch, Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import generator
from tests.adapters.models import SAMPLES, build, losses, statistics

Matrix = npt.NDArray[np.float64]


def weight(model: nn.Module, path: str) -> Matrix:
    layer = model.get_submodule(path)
    found = layer.get_parameter("weight").detach().double().numpy()
    return found.T if isinstance(layer, Conv1D) else found


def product(plan: Plan, path: str, scale: float) -> Matrix:
    b, a = (plan.tensors[f"{path}.{role}"].double().numpy() for role in "BA")
    return scale * (b @ a)


def close(got: Matrix, want: Matrix, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got, want, atol=tolerance * float(np.abs(want).max()), rtol=0)


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(("module", "kept"), [(pissa, slice(3)), (soma, slice(-3, None))])
def test_the_start_is_the_largest_or_smallest_triples_and_the_rest_stays_frozen(
    module: Any, kept: slice, model: str
) -> None:
    base = build(model)
    adapter = module.make(module.Options(rank=3, alpha=6.0))
    plan = adapter.plan(base, seed=1)
    attached = adapter.attach(build(model), plan)

    for path in plan.values["ranks"]:
        u, s, vt = np.linalg.svd(weight(base, path), full_matrices=False)
        want = (u[:, kept] * s[kept]) @ vt[kept]
        close(product(plan, path, 2.0), want)
        frozen = attached.model.get_submodule(path).get_parameter("base_layer.weight").detach().double().numpy()
        rest = weight(base, path) - want
        close(frozen.T if isinstance(base.get_submodule(path), Conv1D) else frozen, rest)


def test_early_blocks_are_left_alone_and_a_block_too_far_is_refused() -> None:
    adapter = soma.make(soma.Options(rank=2, first_block=1))
    paths = adapter.plan(build("vit"), seed=1).values["ranks"]

    assert paths
    assert all(".layer.1." in path or ".layers.1." in path for path in paths)
    with pytest.raises(UnsupportedError, match=r"adapter.first_block = 2: expected <= 1"):
        soma.make(soma.Options(rank=2, first_block=2)).plan(build("vit"), seed=1)


def test_the_decay_falls_by_a_cosine_and_touches_the_pairs_alone() -> None:
    adapter = soma.make(soma.Options(rank=2, decay=0.05, final_decay=1e-5))
    assert adapter.decay_at(0.0) == pytest.approx(0.05)
    assert adapter.decay_at(0.5) == pytest.approx((0.05 + 1e-5) / 2)
    assert adapter.decay_at(1.0) == pytest.approx(1e-5)

    attached = adapter.attach(build("bert"), adapter.plan(build("bert"), seed=1))
    before = attached.read()
    adapter.after_step(attached, Step(progress=0.5, learning_rate=0.1))

    kept = 1 - 0.1 * (0.05 + 1e-5) / 2
    for name, value in attached.read().items():
        torch.testing.assert_close(value, before[name] * kept)


def small() -> nn.Module:
    """Return an MLP 64-48-10."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))


def small_losses(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def small_batch(size: int = 40) -> Batch:
    x = torch.randn(size, 64, generator=generator(1, "x"))
    return {"x": x, "y": (x[:, :10] + x[:, 10:20]).argmax(1)}


def observed(adapter: Started, batch: Batch) -> Statistics:
    calibrator = adapter.calibrator()
    assert calibrator is not None
    return calibrator.observe(small(), batch, small_losses)


def alignment(adapter: Started, plan: Plan) -> tuple[float, float]:
    """Return the cosine of the first small step of the weight with -G, and the best that rank 2 r can reach."""
    attached, plain = adapter.attach(small(), plan), small()
    small_losses(plain, small_batch()).mean().backward()
    gradient = plain.get_parameter("0.weight").grad
    small_losses(attached.model, small_batch()).mean().backward()
    step = _first_step(attached, "0", 1e-4)
    assert gradient is not None
    cosine = float(-(step * gradient).sum() / step.norm() / gradient.norm())
    s = torch.linalg.svdvals(gradient.double())
    rank = plan.values["rank"]
    return cosine, float(s[: 2 * rank].norm() / s.norm())


def _first_step(attached: Attached, group: str, rate: float) -> Tensor:
    factors = {b.slot.role: b for b in attached.bound if b.slot.group == group}
    a, b, scale = factors["A"].parameter, factors["B"].parameter, factors["B"].slot.scale
    assert a.grad is not None
    assert b.grad is not None
    after = (b - rate * b.grad) @ (a - rate * a.grad)
    return (scale * (after - b @ a)).detach()


def test_lora_ga_aligns_its_first_step_with_the_gradient_as_far_as_its_rank_can() -> None:
    adapter = lora_ga.make(lora_ga.Options(rank=4, target_modules=("0",)))
    plan = adapter.plan(small(), seed=1, statistics=observed(adapter, small_batch()))

    cosine, best = alignment(adapter, plan)

    assert cosine >= 0.999 * best
    size = 48**0.25 / 4
    a = plan.tensors["0.A"].double().numpy()
    close(a @ a.T, size**2 * np.eye(4))


@pytest.mark.parametrize("rule", ["peft", "lora", "pissa"])
def test_the_alignment_test_fails_for_other_rules(rule: str) -> None:
    adapter = lora_ga.make(lora_ga.Options(rank=4, target_modules=("0",)))
    plan = adapter.plan(small(), seed=1, statistics=observed(adapter, small_batch()))
    u, s, vt = torch.linalg.svd(observed(adapter, small_batch()).mean()["0"], full_matrices=False)
    wu, ws, wvt = torch.linalg.svd(small().get_parameter("0.weight").detach().double(), full_matrices=False)
    b, a = {
        "peft": (u[:, 4:8] * s[4:8], vt[:4]),
        "lora": (torch.zeros(48, 4), torch.randn(4, 64, generator=generator(3, "a"))),
        "pissa": (wu[:, :4] * ws[:4].sqrt(), ws[:4].sqrt()[:, None] * wvt[:4]),
    }[rule]
    other = Plan(
        adapter="lora_ga", values=plan.values, tensors=plan.tensors.replace({"0.A": a.float(), "0.B": b.float()})
    )

    cosine, best = alignment(adapter, other)

    assert cosine < 0.98 * best


def test_a_rank_whose_double_the_weight_does_not_have_is_refused() -> None:
    adapter = lora_ga.make(lora_ga.Options(rank=6))
    with pytest.raises(UnsupportedError, match=r"adapter.rank = 6: expected <= 5, half the lesser side of '2'"):
        adapter.plan(small(), seed=1, statistics=observed(adapter, small_batch()))


def oracle(inputs: Matrix, w: Matrix) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Return damped C, U, S and Vt C^-1 of W C."""
    c = inputs.T @ inputs / len(inputs)
    c = c / np.trace(c) * len(c)
    c = c + 0.01 * np.eye(len(c))
    assert np.linalg.norm(c @ np.linalg.inv(c) - np.eye(len(c))) < 0.05
    u, s, vt = np.linalg.svd(w @ c, full_matrices=False)
    return c, u, s, vt @ np.linalg.inv(c)


@pytest.mark.parametrize(("mode", "kept"), [("adapt", slice(4)), ("preserve", slice(-4, None))])
def test_corda_starts_at_the_directions_that_the_inputs_use_most_or_least(mode: Any, kept: slice) -> None:
    adapter = corda.make(corda.Options(rank=4, alpha=2.0, mode=mode, target_modules=("0",)))
    batch = {**small_batch(), "x": small_batch()["x"] * torch.logspace(-1, 1, 64)}
    plan = adapter.plan(small(), seed=1, statistics=observed(adapter, batch))
    w = weight(small(), "0")

    c, u, s, oriented = oracle(batch["x"].double().numpy(), w)

    got = product(plan, "0", 0.5)
    close(got, (u[:, kept] * s[kept]) @ oriented[kept], 1e-4)
    if mode == "adapt":
        left = float(np.linalg.norm((w - got) @ c))
        assert left == pytest.approx(math.sqrt(float((s[4:] ** 2).sum())), rel=1e-3)
        pu, ps, pvt = np.linalg.svd(w, full_matrices=False)
        assert left < 0.9 * float(np.linalg.norm((w - (pu[:, :4] * ps[:4]) @ pvt[:4]) @ c))


def test_corda_s_two_modes_train_other_directions() -> None:
    rows = []
    for mode in ("adapt", "preserve"):
        adapter = corda.make(corda.Options.model_validate({"rank": 4, "mode": mode, "target_modules": ("0",)}))
        batch = {**small_batch(), "x": small_batch()["x"] * torch.logspace(-1, 1, 64)}
        plan = adapter.plan(small(), seed=1, statistics=observed(adapter, batch))
        rows.append(np.linalg.qr(plan.tensors["0.A"].double().numpy().T)[0])

    assert float(np.linalg.norm(rows[0].T @ rows[1]) ** 2) / 4 < 0.2


@pytest.mark.parametrize("module", [lora_ga, corda])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_statistics_do_not_depend_on_how_examples_were_batched(module: Any, size: int) -> None:
    adapter, batch = module.make(module.Options(rank=4)), small_batch()
    whole, total = observed(adapter, batch), None
    for start in range(0, 40, size):
        part = observed(adapter, {name: value[start : start + size] for name, value in batch.items()})
        total = part if total is None else total + part

    assert total is not None
    assert total.num_examples == whole.num_examples == 40
    assert total.sensitivity is None
    for name, value in whole.sums.items():
        torch.testing.assert_close(total.sums[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module", [lora_ga, corda])
def test_what_four_clients_sum_up_gives_the_factors_of_all_their_examples(module: Any) -> None:
    adapter, batch = module.make(module.Options(rank=4, target_modules=("0",))), small_batch()
    parts = [observed(adapter, {name: value[at : at + 10] for name, value in batch.items()}) for at in range(0, 40, 10)]
    pooled = parts[0] + parts[1] + parts[2] + parts[3]

    central, together = (
        adapter.plan(small(), seed=1, statistics=found).tensors for found in (observed(adapter, batch), pooled)
    )

    for name, value in central.items():
        close(together[name].double().numpy(), value.double().numpy(), 1e-6)


def test_gradients_and_covariances_are_those_of_a_loop_by_hand() -> None:
    batch = small_batch(3)
    gradients = observed(lora_ga.make(lora_ga.Options(rank=4)), batch).sums["0"]
    covariances = observed(corda.make(corda.Options(rank=4)), batch).sums["0"]
    total, outer = torch.zeros(48, 64), np.zeros((64, 64))
    for index in range(3):
        model = small()
        small_losses(model, {name: value[index : index + 1] for name, value in batch.items()}).sum().backward()
        gradient = model.get_parameter("0.weight").grad
        assert gradient is not None
        total += gradient
        row = batch["x"][index].double().numpy()
        outer += np.outer(row, row)

    torch.testing.assert_close(gradients.float(), total, rtol=1e-5, atol=1e-6)
    close(covariances.numpy(), outer)


def test_padding_is_no_part_of_the_covariances() -> None:
    model, adapter = build("bert"), corda.make(corda.Options(rank=4))
    calibrator, inputs = adapter.calibrator(), dict(SAMPLES["bert"].inputs)
    padded = {name: nn.functional.pad(value, (0, 2)) for name, value in inputs.items()}

    plain, more = (calibrator.observe(model, batch, losses).sums for batch in (inputs, padded))

    assert len(plain) == len(more) > 0
    for name, value in plain.items():
        torch.testing.assert_close(more[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", [lora_ga, corda])
def test_the_model_is_left_as_it_was(module: Any) -> None:
    model, adapter = build("gpt2").requires_grad_(False), module.make(module.Options(rank=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    adapter.calibrator().observe(model, dict(SAMPLES["gpt2"].inputs), losses)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("module", [lora_ga, corda])
def test_a_plan_without_statistics_is_refused(module: Any) -> None:
    with pytest.raises(UnsupportedError, match="public examples, and none were given"):
        module.make(module.Options(rank=2)).plan(small(), seed=1)


@pytest.mark.parametrize("module", [pissa, soma, lora_ga, corda])
def test_the_same_server_plans_the_same_bits(module: Any) -> None:
    adapter = module.make(module.Options(rank=2))
    plans = [adapter.plan(build("vit"), seed=1, statistics=statistics(adapter, "vit")) for _ in range(2)]
    assert plans[0].hash == plans[1].hash
