"""Frozen bases of 8 and 4 bits: what is refused anywhere, and where bitsandbytes is installed, the arithmetic."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedpeft import plugins
from fedpeft.adapters import _peft
from fedpeft.config import Experiment
from fedpeft.engines.inline import simulate
from fedpeft.errors import UnsupportedError
from fedpeft.models import quantized
from fedpeft.report.run_directory import RunDirectory
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import NEEDED_BY_ADAPTER, merged, tiny
from tests.e2e.test_inline import digest
from tests.training.test_frozen import PRIVACY, experiment, gradients

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="the extra fedpeft[quantization] is not installed")
BESIDE = {"lora", "prompt_tuning"}
FORMS = ["nf4", "int8"]


def made(folder: Path, form: str, *case: str, on: bool = False, **changes: Any) -> Experiment:
    return experiment(folder, *case, on=on, **{"compute": {"cache_frozen": on, "quantization": form}, **changes})


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library seem installed: a refusal comes before it is used."""
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda _: object())  # type: ignore[attr-defined]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda _: None)  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedError, match=r"'nf4' needs bitsandbytes.*pip install 'fedpeft\[quantization\]'"):
        assemble(tiny(compute={"quantization": "nf4"}))


@pytest.mark.usefixtures("pretended")
def test_layers_the_other_way_round_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"GPT2ForSequenceClassification has Conv1D"):
        assemble(made(tmp_path, "int8", "gpt2"))


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("name", sorted(set(plugins.names("adapter")) - BESIDE))
def test_an_adapter_that_computes_with_frozen_weights_is_refused(name: str) -> None:
    asked = {"adapter": {"name": name}, "compute": {"quantization": "nf4"}}
    table = merged(asked, NEEDED_BY_ADAPTER.get(name, {}))
    with pytest.raises(UnsupportedError, match=rf"adapter '{name}': .*; use adapter 'lora'"):
        assemble(tiny(**table))


def test_what_would_change_a_quantised_weight_is_refused() -> None:
    attached = assemble(tiny()).adapted.attached
    layer = next(iter(_peft.layers(attached.model).values())).get_base_layer()
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    adapter = assemble(tiny()).adapted.adapter
    with pytest.raises(UnsupportedError, match=r"is quantised .* merging would round the update away"):
        adapter.merge(attached)
    with pytest.raises(UnsupportedError, match="a residual on it would be rounded away"):
        adapter.shift(attached, {})


def test_the_switch_is_in_the_identity_and_its_default_is_not() -> None:
    assert tiny(compute={"quantization": "none"}).hash == tiny().hash
    assert tiny(compute={"quantization": "nf4"}).hash != tiny().hash


def dequantised(bench: Workbench, plain: Workbench) -> Workbench:
    """Return the plain model with the weights that the quantised one stands for."""
    from bitsandbytes.functional import dequantize_4bit

    layers = dict(plain.adapted.attached.model.named_modules())
    for path, module in bench.adapted.attached.model.named_modules():
        if type(module).__name__ == "Linear4bit" and hasattr(module.weight, "quant_state"):
            layers[path].weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state)  # type: ignore[union-attr,arg-type]
    return plain


@needs_library
@pytest.mark.parametrize("architecture", ["bert", "llama", "vit"])
def test_four_bits_are_the_model_of_the_weights_they_stand_for(tmp_path: Path, architecture: str) -> None:
    bench, plain = (assemble(made(tmp_path, form, architecture)) for form in ("nf4", "none"))
    before = gradients(plain, plain.client_examples(0)[0])
    oracle = dequantised(bench, plain)
    rows, _ = bench.client_examples(0)
    found, expected = gradients(bench, rows), gradients(oracle, rows)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(before[name], value) for name, value in expected.items())


@needs_library
@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_base_answers_much_as_its_own_in_full_and_is_smaller(tmp_path: Path, form: str) -> None:
    bench, plain = (assemble(made(tmp_path, name)) for name in (form, "none"))
    losses = [
        each.adapted.task.losses(
            each.adapted.attached.model, each.adapted.task.collate(each.client_examples(0)[0])
        ).detach()
        for each in (bench, plain)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0.02)
    assert not torch.equal(losses[0], losses[1])
    assert _layer_bytes(bench) < 0.3 * _layer_bytes(plain)
    assert bench.adapted.plan.hash == plain.adapted.plan.hash
    assert bench.adapted.base_hash == plain.adapted.base_hash


def _layer_bytes(bench: Workbench) -> int:
    blocks = (
        each for name, each in bench.adapted.attached.model.named_modules() if name.endswith("intermediate.dense")
    )
    return sum(each.weight.nbytes for each in blocks)  # type: ignore[union-attr,misc,operator]


@needs_library
@pytest.mark.parametrize("form", FORMS)
def test_a_federation_gives_the_same_bits_by_many_workers_and_cannot_be_merged(tmp_path: Path, form: str) -> None:
    def run(name: str, workers: int) -> Experiment:
        out = {"directory": str(tmp_path / name)}
        return made(tmp_path, form, on=True, simulation={"workers": workers}, output=out)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = simulate(run("one", 1))
    simulate(run("two", 2))
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert first["first"]["metrics"] != first["last"]["metrics"]
    from fedpeft.inference import export_run

    export_run(tmp_path / "one", tmp_path / "plain", merge=False)
    with pytest.raises(UnsupportedError, match="is quantised"):
        export_run(tmp_path / "one", tmp_path / "merged", merge=True)
    assert RunDirectory.open(tmp_path / "one").experiment().compute.quantization == form


@needs_library
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_single_examples_are_proved_beside_it(tmp_path: Path, form: str) -> None:
    bench = assemble(made(tmp_path, form, privacy=PRIVACY, strategy={"name": "fedavg", "weighting": "uniform"}))
    bench.rehearse()
    assert bench.proven


@needs_library
@pytest.mark.parametrize("form", FORMS)
def test_a_residual_is_refused_before_the_first_round(tmp_path: Path, form: str) -> None:
    with pytest.raises(UnsupportedError, match="residual on it would be rounded away"):
        assemble(made(tmp_path, form, strategy={"name": "fedex_lora"})).rehearse()


@needs_library
def test_no_example_s_answer_depends_on_another_s(tmp_path: Path) -> None:
    bench = assemble(made(tmp_path, "int8"))
    model, task, rows = bench.adapted.attached.model, bench.adapted.task, bench.client_examples(0)[0]
    rows = [row for row in rows if len(row["input_ids"]) == len(rows[0]["input_ids"])]

    def losses(some: Any) -> Tensor:
        with torch.no_grad():
            return task.losses(model, task.collate(some))

    alone = torch.cat([losses([row]) for row in rows])
    torch.testing.assert_close(losses(rows), alone, rtol=1e-5, atol=1e-6)
