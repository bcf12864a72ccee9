"""Commands on files, with an adapter that peft itself has saved; merging against slow oracles in float64."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from fedpeft import cli_files
from fedpeft.cli import main
from fedpeft.engines.inline import simulate
from fedpeft.errors import InputError
from fedpeft.report.archive import read_archive, write_archive
from fedpeft.report.folders import Folder, read_folder
from fedpeft.report.merging import merged, ties
from fedpeft.strategies.base import Directive
from fedpeft.tensors import Tensors
from fedpeft.wire.convert import to_bytes
from fedpeft.wire.message import Broadcast, Carried, Envelope
from tests.conftest import tiny

Said = tuple[int, str, str]
A, B = "base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def command(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["fedpeft", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return command


def base() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    )


def saved(folder: Path, *, seed: int = 1, head: bool = True) -> Path:
    """Save an adapter of random factors as peft does."""
    config = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS" if head else None)
    model = get_peft_model(base(), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_of_peft_comes_back_as_signs_and_scales_and_peft_loads_it(
    tmp_path: Path, run: Callable[..., Said]
) -> None:
    adapter = saved(tmp_path / "adapter")
    code, out, _ = run("compress", adapter, "-o", tmp_path / "a.compeft", "--density", 0.1)
    assert (code, "times smaller" in out) == (0, True)
    assert run("decompress", tmp_path / "a.compeft", "-o", tmp_path / "back")[0] == 0

    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "back"))
    assert set(before) == set(after)
    for role in ("lora_A", "lora_B"):
        names = sorted(name for name in before if role in name)
        x, y = (np.concatenate([part[name].numpy().ravel() for name in names]) for part in (before, after))
        k = round(0.1 * x.size)
        kept = np.argsort(-np.abs(x), kind="stable")[:k]
        want = np.zeros(x.size)
        want[kept] = np.sign(x[kept]) * np.abs(x[kept]).astype(np.float64).mean()
        np.testing.assert_allclose(y, want, rtol=1e-6)
    others = [name for name in before if "lora_" not in name]
    assert others
    assert all(torch.equal(before[name], after[name]) for name in others), "heads are as they were"
    loaded = PeftModel.from_pretrained(base(), tmp_path / "back")
    state = {name: value for name, value in loaded.state_dict().items() if "lora_B" in name}
    assert all(torch.equal(value, after[name.replace(".default", "")]) for name, value in state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_come_back_and_density_1_keeps_every_sign(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = Folder({"peft_type": "LORA"}, Tensors({A: torch.randn(2, 9).to(dtype), B: torch.zeros(5, 2).to(dtype)}))
    write_archive(tmp_path / "x", folder, {"density": 1.0}, where="x")
    back = read_archive(tmp_path / "x")

    assert back.config == folder.config
    assert back.tensors.manifest() == folder.tensors.manifest()
    assert torch.equal(torch.sign(back.tensors[A]), torch.sign(folder.tensors[A]))
    assert not back.tensors[B].any()


def test_no_damaged_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tensors = Tensors({A: torch.randn(2, 9), B: torch.randn(5, 2), "head": torch.randn(3)})
    write_archive(path, Folder({"peft_type": "LORA"}, tensors), {"density": 0.3}, where="x")
    data, good = path.read_bytes(), read_archive(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            found = read_archive(path)
        except InputError:
            continue
        assert (found.config, found.tensors) == (good.config, good.tensors), "only what means the same is taken"
        path.write_bytes(data[:at])
        with pytest.raises(InputError):
            read_archive(path)


def test_a_file_that_claims_more_than_the_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "x", Folder({}, Tensors({A: torch.randn(2, 9), B: torch.ones(5, 2)})), {}, where="x")
    monkeypatch.setattr("fedpeft.report.archive.MAX_ELEMENTS", 27)
    with pytest.raises(InputError, match="more than 27 elements"):
        read_archive(tmp_path / "x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "nowhere", "-o", "x"], "not a PEFT adapter"),
        (["compress", "{adapter}", "-o", "x", "--density", "2"], "density = 2"),
        (["compress", "{adapter}", "-o", "x", "--alpha", "2"], "alpha has no effect"),
        (["compress", "{adapter}", "-o", "{adapter}"], "exists"),
        (["decompress", "{adapter}/adapter_config.json", "-o", "x"], "not a ComPEFT file"),
        (["inspect", "nowhere"], "cannot be read"),
        (["inspect", "{adapter}/adapter_config.json"], "or damaged"),
        (["merge", "{adapter}", "-o", "x"], "is no factor of LoRA"),
        (["merge", "{plain}", "{plain}", "-o", "x", "--weights", "1"], "expected 2 finite numbers"),
        (["merge", "{plain}", "-o", "x", "--weights", "a"], "expected numbers"),
        (["merge", "{plain}", "-o", "{plain}"], "not empty"),
        (["merge", "{plain}", "-o", "x", "--density", "0.1"], "no effect"),
    ],
)
def test_bad_input_is_one_error_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Said], arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"adapter": saved(tmp_path / "a"), "plain": saved(tmp_path / "p", head=False)}
    code, _, err = run(*(argument.format(**places) for argument in arguments))

    assert code == 2
    assert words in err
    assert err.count("error:") == 1
    assert not (tmp_path / "x").exists()


def test_inspect_prints_what_each_file_says(tmp_path: Path, run: Callable[..., Said]) -> None:
    simulate(tiny(tmp_path / "run", rounds={"num_rounds": 1}))
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    manifest = Tensors({"w": torch.zeros(2, 3)}).manifest()
    envelope = Envelope(
        job="job\x1b[31m",
        round_number=7,
        config_hash="c",
        plan_hash="p",
        base_hash="b",
        codec=("int8",),
        carries=Carried.of(manifest, told=manifest),
    )
    message = Broadcast(envelope=envelope, client=3, kind="train", directive=Directive(rank=2))
    (tmp_path / "header").write_bytes(to_bytes(message, payload_sha256=b"\1" * 32))
    run("compress", saved(tmp_path / "a"), "-o", tmp_path / "a.compeft")

    wanted = {
        tmp_path / "header": ("message: broadcast", "round_number: 7", "tensor w: [2, 3] float32", "num_elements: 6"),
        newest: ("checkpoint: round_000001", "round: 1", "config_hash: "),
        newest / "adapter.safetensors": ("safetensors file: adapter.safetensors", "F32"),
        tmp_path / "a.compeft": ("ComPEFT file: a.compeft", "density: 0.05", "peft_type: LORA"),
    }
    for path, words in wanted.items():
        code, out, err = run("inspect", path)
        assert (code, err) == (0, "")
        assert all(word in out for word in words), out
        assert "\x1b" not in out


def test_inspect_is_a_table_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Said]
) -> None:
    save_file({"[red]w": torch.zeros(2)}, tmp_path / "x.safetensors")
    monkeypatch.setattr(cli_files, "Console", lambda **options: Console(force_terminal=True, width=100, **options))
    code, out, _ = run("inspect", tmp_path / "x.safetensors")

    assert code == 0
    assert "tensor [red]w" in out
    assert "│" in out


def test_ties_of_the_specifications_vector() -> None:
    stack = [np.array(row, np.float64) for row in ([2, -1, 0, 1], [1, 3, 0, -1], [-1, 1, 0, 3])]

    assert ties(stack, density=1.0).tolist() == [1.5, 2, 0, 2]


def slow_ties(vectors: list[list[float]], density: float) -> list[float]:
    """Entry by entry."""
    trimmed = []
    for vector in vectors:
        order = sorted(range(len(vector)), key=lambda i: (-abs(vector[i]), i))[: int(density * len(vector) + 0.5)]
        trimmed.append([value if i in order else 0.0 for i, value in enumerate(vector)])
    signs = [float(np.sign(sum(column))) for column in zip(*trimmed, strict=True)]
    most = 1.0 if sum(signs) >= 0 else -1.0
    found = []
    for column, sign in zip(zip(*trimmed, strict=True), signs, strict=True):
        agreeing = [value for value in column if value * (sign or most) > 0]
        found.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return found


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 12)),
    seed=st.integers(0, 999),
    density=st.sampled_from([0.2, 0.5, 1]),
)
def test_ties_is_the_oracle(size: tuple[int, int], seed: int, density: float) -> None:
    stack = np.random.default_rng(seed).integers(-6, 7, size=size).astype(np.float64)

    np.testing.assert_allclose(ties(list(stack), density=density), slow_ties(stack.tolist(), density), rtol=1e-12)


def pair_of(seed: int, **config: Any) -> Folder:
    rng = np.random.default_rng(seed)
    tensors = {
        A: torch.from_numpy(rng.normal(size=(2, 5))).float(),
        B: torch.from_numpy(rng.normal(size=(4, 2))).float(),
    }
    return Folder({"peft_type": "LORA", "r": 2, **config}, Tensors(tensors))


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 4), seed=st.integers(0, 99), weighted=st.booleans())
def test_task_arithmetic_is_the_weighted_sum_of_factors(count: int, seed: int, weighted: bool) -> None:
    folders = [pair_of(10 * seed + k) for k in range(count)]
    weights = [0.5 + k for k in range(count)] if weighted else None
    found = merged(folders, method="task_arithmetic", weights=weights)
    for name in (A, B):
        want = sum(
            w * folder.tensors[name].double().numpy()
            for w, folder in zip(weights or [1 / count] * count, folders, strict=True)
        )
        np.testing.assert_allclose(found.tensors[name].numpy(), want, rtol=1e-6, atol=1e-6)
    if count == 1 and not weighted:
        assert found.tensors == folders[0].tensors


def test_ties_trims_over_all_factors_together_and_weights_count_before() -> None:
    folders, weights = [pair_of(1), pair_of(2)], [1.0, 3.0]
    flat = [
        [w * v for name in (A, B) for v in folder.tensors[name].double().numpy().ravel().tolist()]
        for folder, w in zip(folders, weights, strict=True)
    ]
    found = merged(folders, method="ties", weights=weights, density=0.3)
    got = np.concatenate([found.tensors[name].numpy().ravel() for name in (A, B)])

    np.testing.assert_allclose(got, slow_ties(flat, 0.3), rtol=1e-6)


@pytest.mark.parametrize("change", [{"r": 4}, {"lora_alpha": 8}, {"base_model_name_or_path": "other"}])
def test_adapters_that_differ_are_not_merged(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected the same"):
        merged([pair_of(1), pair_of(2, **change)], method="ties")


def test_a_merged_folder_is_what_peft_loads_from_a_folder_and_a_file(tmp_path: Path, run: Callable[..., Said]) -> None:
    one, two = saved(tmp_path / "1", head=False), saved(tmp_path / "2", seed=2, head=False)
    run("compress", two, "-o", tmp_path / "2.compeft", "--density", 0.5)
    code, _, err = run(
        "merge", one, tmp_path / "2.compeft", "--method", "ties", "--weights", "1,2", "-o", tmp_path / "m"
    )

    assert (code, err) == (0, "")
    PeftModel.from_pretrained(base(), tmp_path / "m")
    want = merged([read_folder(one), read_archive(tmp_path / "2.compeft")], method="ties", weights=[1.0, 2.0])
    assert read_folder(tmp_path / "m").tensors == want.tensors
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["r"] == 4
    shutil.rmtree(tmp_path / "m")
