"""Residuals on frozen weights over whole runs: every user of the model applies them, and what travels is counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from fedpeft import seeds
from fedpeft.adapters.base import pairs
from fedpeft.client import Node, client_app
from fedpeft.config import Experiment
from fedpeft.engines.inline import InlineGrid, simulate
from fedpeft.errors import ResumeError, RunError, UnsupportedError
from fedpeft.inference import evaluate_run, export_run, open_run, predict
from fedpeft.models.base import Wanted
from fedpeft.report.export import read_residuals, read_slots
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import checkpoint as checkpoints
from fedpeft.rounds.checkpoint import Checkpoint
from fedpeft.server import serve
from fedpeft.strategies import fedex_lora
from fedpeft.tensors import Tensors
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import tiny
from tests.e2e.test_inline import digest, lines
from tests.e2e.test_resume import StoppedError, stop_at
from tests.e2e.test_strategies import watch_bodies

NAMES = ("fedex_lora", "flora")
both = pytest.mark.parametrize("name", NAMES)
TEXTS = [f"{word} {number}" for number in range(12) for word in ("up", "down")]


def texts(folder: Path, name: str, **changes: Any) -> Experiment:
    """Return two rounds of text classification that move the adapter far, so that the residual counts."""
    rows = [f"{text},{text.split()[0]}" for text in TEXTS]
    (folder / "texts.csv").write_text("\n".join(["t,l", *rows]))
    architecture = changes.pop("architecture", "bert")
    return tiny(
        folder / "run",
        **{
            "model": {"name": "tiny", "architecture": architecture, "hidden_size": 16, "num_layers": 1},
            "data": {"name": "table", "path": str(folder / "texts.csv"), "text": "t", "label": "l"},
            "task": {"name": "sequence_classification", "max_length": 16},
            "strategy": {"name": name},
            "train": {"learning_rate": 0.1},
            "rounds": {"num_rounds": 2},
            **changes,
        },
    )


def newest(run: Path) -> Checkpoint:
    found = checkpoints.latest(RunDirectory.open(run).checkpoints)
    assert found is not None
    return found


def logits(bench: Workbench, model: nn.Module) -> Tensor:
    tokenizer = bench.adapted.loaded.tokenizer
    assert tokenizer is not None
    with torch.inference_mode():
        encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
        return torch.as_tensor(model.eval()(**dict(encoded)).logits)


def plain_base(experiment: Experiment, bench: Workbench) -> nn.Module:
    wanted = Wanted(
        kind=bench.adapted.task.kind,
        label_names=bench.adapted.label_names,
        seed=seeds.derive(experiment.seed, "model"),
    )
    model: nn.Module = experiment.model.build().load(wanted).model
    return model


def by_hand(experiment: Experiment, bench: Workbench, state: Any) -> nn.Module:
    """The plain model with W + residual + s B A, from a checkpoint's tensors alone."""
    model = plain_base(experiment, bench)
    for pair in pairs(bench.adapted.attached.slots):
        change = state.memory[f"residual.{pair.b.group}"].double()
        change = change + pair.scale * state.adapter[pair.b.name].double() @ state.adapter[pair.a.name].double()
        weight = model.get_submodule(pair.b.group).get_parameter("weight")
        transposed = experiment.model.table()["architecture"] == "gpt2"
        weight.data += (change.T if transposed else change).float()
    heads = {slot.name for slot in bench.adapted.attached.slots if slot.role == "head"}
    model.load_state_dict({name: state.adapter[name] for name in heads}, strict=False)
    return model


@both
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_server_peft_merged_and_reopened_models_say_the_same_after_two_rounds(
    tmp_path: Path, name: str, architecture: str
) -> None:
    experiment = texts(tmp_path, name, architecture=architecture)
    summary = simulate(experiment)
    run, state, bench = tmp_path / "run", newest(tmp_path / "run").state, assemble(experiment)
    bench.adapted.attached.write(state.adapter)
    without = logits(bench, bench.adapted.attached.model)
    bench.adapted.place(state.adapter, bench.residuals(state))
    expected = logits(bench, bench.adapted.attached.model)

    export_run(run, tmp_path / "adapter", merge=False)
    export_run(run, tmp_path / "merged", merge=True)

    hosted = PeftModel.from_pretrained(plain_base(experiment, bench), str(tmp_path / "adapter"))
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    assert (expected - without).abs().max() > 1e-3, "the residual counts"
    for model in (hosted, merged, open_run(run).adapted.attached.model, by_hand(experiment, bench, state)):
        torch.testing.assert_close(logits(bench, model), expected, rtol=1e-5, atol=1e-5)
    assert evaluate_run(run) == summary["last"]["metrics"]
    labels = [bench.adapted.label_names[index] for index in expected.argmax(1).tolist()]
    assert predict(open_run(run), [{"text": text} for text in TEXTS]) == labels


@both
def test_clients_that_keep_nothing_and_missed_rounds_hold_what_the_server_holds(tmp_path: Path, name: str) -> None:
    """A fresh workbench for every message, against one that all share."""
    changes: dict[str, Any] = {
        "rounds": {"num_rounds": 3, "clients_per_round": 2},
        "evaluate": {"on_clients": True},
        "strategy": {"name": name},
        "train": {"learning_rate": 0.1},
    }
    simulate(tiny(tmp_path / "shared", **changes))
    experiment = tiny(tmp_path / "apart", **changes)
    bench = assemble(experiment)

    node = Node(experiment=lambda _: experiment, workbench=lambda _, __: assemble(experiment, bench.adapted.plan))
    run, _ = RunDirectory.prepare(experiment)
    serve(InlineGrid(client_app(node), num_clients=3), bench, run)

    assert len({tuple(row["clients"]) for row in lines(tmp_path / "apart")[1:]}) > 1
    assert lines(tmp_path / "apart") == lines(tmp_path / "shared")
    assert not any(row["failures"] for row in lines(tmp_path / "apart"))
    assert digest(tmp_path / "apart") == digest(tmp_path / "shared")
    assert newest(tmp_path / "apart").state.memory == newest(tmp_path / "shared").state.memory


@both
def test_a_run_that_stops_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    changes: dict[str, Any] = {"strategy": {"name": name}, "train": {"learning_rate": 0.1}}
    simulate(tiny(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        stop_at(patch, checkpoints, "save", 3, before=False)
        with pytest.raises(StoppedError):
            simulate(tiny(tmp_path / "cut", **changes))
    simulate(tiny(tmp_path / "cut", **changes, output={"if_exists": "resume"}))

    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    whole, cut = (newest(tmp_path / run).state for run in ("whole", "cut"))
    assert (whole.adapter, whole.memory) == (cut.adapter, cut.memory)
    exported = [read_residuals(tmp_path / run / "adapter") for run in ("whole", "cut")]
    assert exported[0] == exported[1]
    assert {f"residual.{group}" for group in exported[0]} <= set(whole.memory)
    assert all(torch.equal(tensor, whole.memory[f"residual.{group}"]) for group, tensor in exported[0].items())


@both
def test_the_bytes_of_each_round_are_the_floats_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen, down = watch_bodies(monkeypatch), []
    for num_rounds in (1, 2, 3):
        experiment = tiny(tmp_path / str(num_rounds), strategy={"name": name}, rounds={"num_rounds": num_rounds})
        simulate(experiment)
        down.append(sorted(seen["down"]))
        seen["down"].clear()
    bench = assemble(experiment)
    plain = 4 * bench.adapted.initial.num_elements
    per_round = 3 - (name == "fedex_lora")

    def extra(num_rounds: int) -> int:
        found = 0
        for pair in pairs(bench.adapted.attached.slots):
            (d_out, rank), d_in = pair.b.shape, pair.a.shape[1]
            found += 4 * min(num_rounds * per_round * rank * (d_out + d_in), d_out * d_in)
        return found

    assert down == [sorted({plain + extra(done) for done in range(num)}) for num in (1, 2, 3)]
    assert 0 < extra(1) < extra(2)
    assert seen["up"] == {plain}
    for row, done in zip(lines(tmp_path / "3")[1:], range(3), strict=True):
        assert 3 * (plain + extra(done)) < row["bytes_down"] < 3 * (plain + extra(done) + 8192)


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ({"residual.elsewhere": torch.zeros(4, 4)}, "residual.elsewhere"),
        (
            {
                "residual_B.vit.layers.0.attention.q_proj": torch.zeros(16, 9),
                "residual_A.vit.layers.0.attention.q_proj": torch.zeros(9, 16),
            },
            r"residual_B.vit.layers.0.attention.q_proj \[16, 9\].* expected residual.vit.layers.0.attention.q_proj",
        ),
    ],
)
def test_clients_refuse_parts_out_of_bounds_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: dict[str, Tensor], named: str
) -> None:
    honest = fedex_lora.FedExLora.residual_parts

    def changed(self: Any, slots: Any, state: Any) -> Tensors:
        return Tensors({**honest(self, slots, state), **added})

    with monkeypatch.context() as patch:
        patch.setattr(fedex_lora.FedExLora, "residual_parts", changed)
        with pytest.raises(RunError, match=rf"client 0: .*manifest: tensor \d+ is .*{named}"):
            simulate(tiny(tmp_path / "run", strategy={"name": "fedex_lora"}))


def test_a_strategy_without_a_residual_takes_none_and_exports_none(tmp_path: Path) -> None:
    simulate(tiny(tmp_path / "run", rounds={"num_rounds": 1}))

    assert len(read_residuals(tmp_path / "run" / "adapter")) == 0
    assert not list((tmp_path / "run" / "adapter").glob("*residual*"))


def test_a_damaged_residual_is_named(tmp_path: Path) -> None:
    simulate(tiny(tmp_path / "run", strategy={"name": "flora"}, rounds={"num_rounds": 1}))
    path = tmp_path / "run" / "adapter" / "fedpeft_residuals.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)

    for use in (open_run, evaluate_run, lambda run: export_run(run, tmp_path / "out", merge=False)):
        with pytest.raises(ResumeError, match=r"fedpeft_residuals.safetensors: damaged"):
            use(tmp_path / "run")


@both
def test_an_adapter_other_than_lora_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    for adapter in ("ia3", "bottleneck", "lora_sb"):
        with pytest.raises(UnsupportedError, match=rf"strategy '{name}' .* no pairs .* use adapter 'lora'$"):
            simulate(tiny(tmp_path / "run", strategy={"name": name}, adapter={"name": adapter}))
    assert not (tmp_path / "run").exists()


def test_a_residual_that_is_not_finite_ends_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = fedex_lora.FedExLora.residuals

    def broken(self: Any, slots: Any, parts: Tensors) -> Tensors:
        found = honest(self, slots, parts)
        return found if parts.num_elements == 0 else found.map(lambda tensor: tensor * torch.inf)

    monkeypatch.setattr(fedex_lora.FedExLora, "residuals", broken)
    with pytest.raises(Exception, match=r"residual after round 1: tensor .* has a NaN or infinite entry"):
        simulate(tiny(tmp_path / "run", strategy={"name": "fedex_lora"}))


def test_fed_sb_moves_cores_alone_and_sends_r_squared_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"adapter": {"name": "lora_sb", "rank": 3}, "strategy": {"name": "fed_sb"}}
    experiment = tiny(tmp_path / "run", **head, rounds={"num_rounds": 1})
    seen, bench = watch_bodies(monkeypatch), assemble(experiment)
    slots = [slot for slot in bench.adapted.attached.slots if slot.travels]
    heads = sum(slot.spec.num_elements for slot in slots if slot.role == "head")

    summary = simulate(experiment)

    cores = [slot.name for slot in slots if slot.role == "core"]
    assert seen == {side: {4 * (9 * len(cores) + heads)} for side in ("up", "down")}
    final = read_slots(tmp_path / "run" / "adapter")
    assert all(final[name].any() for name in cores)
    assert evaluate_run(tmp_path / "run") == summary["last"]["metrics"]
