"""The command line: what each command does, its exit codes, what goes to which stream."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedpeft import __version__, plugins, seeds, server
from fedpeft.cli import main
from fedpeft.engines import inline, start
from fedpeft.inference import FinishedRun, open_run
from fedpeft.models.base import Wanted
from fedpeft.privacy.ledger import Charge
from fedpeft.privacy.own import OwnLedger
from fedpeft.training.loop import to_device
from tests.conftest import merged, tiny
from tests.e2e.test_inline import digest
from tests.privacy.test_ledger import of

BERT: dict[str, Any] = {"name": "tiny", "architecture": "bert", "hidden_size": 16, "num_layers": 1, "num_heads": 2}
LLAMA = {**BERT, "architecture": "llama"}
ROUNDS = {"rounds": {"num_rounds": 1}}
TEXTS = ["rows of a table", "a red balloon", "columns of a table", "a green balloon", "cells of a table", "balloons"]


class Said(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""

    def command(*arguments: object) -> Said:
        for name in ("HF_HUB_VERBOSITY", "HF_HUB_DISABLE_TELEMETRY"):
            monkeypatch.setenv(name, "error" if name.endswith("VERBOSITY") else "1")
        monkeypatch.setattr(sys, "argv", ["fedpeft", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return command


def text_table(**changes: Any) -> dict[str, Any]:
    """Return what turns the tiny experiment into one on pairs of texts."""
    table: dict[str, Any] = {
        "name": "tiny-text",
        "model": {**BERT, "name": "tiny"},
        "data": {"name": "table", "path": "texts.csv", "text": "text", "text2": "text2", "label": "kind"},
        "partition": {"name": "iid", "num_clients": 2},
        "task": {"name": "sequence_classification", "max_length": 64},
        **ROUNDS,
    }
    return merged(table, changes)


def write_texts(folder: Path) -> Path:
    rows = [f"{text},again,{'thing' if 'balloon' in text else 'table'}" for text in TEXTS * 3]
    path = folder / "texts.csv"
    path.write_text("\n".join(["text,text2,kind", *rows]) + "\n")
    return path


def finished(folder: Path, **changes: Any) -> Path:
    """Run a tiny experiment to its end and return its run directory."""
    inline.simulate(tiny(folder / "run", **changes))
    return folder / "run"


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("image"), **ROUNDS)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    return finished(folder, **text_table(data={"path": str(write_texts(folder))}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tiny(rounds={"num_rounds": 3}).to_toml())
    return path


def test_simulate_writes_plain_lines_and_ends_with_zero(run: Run, file: Path, tmp_path: Path) -> None:
    said = run("simulate", file, "--out", tmp_path / "run", "--set", "rounds.num_rounds=1")
    assert (said.code, said.err) == (0, "")
    assert "\x1b" not in said.out
    assert "\r" not in said.out
    lines = said.out.splitlines()
    assert lines[0].startswith("tiny-vit: lora with ")
    assert [line.split()[1] for line in lines if line.startswith("round ")] == ["0/1", "1/1"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_without_out_a_run_goes_to_runs(run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("simulate", file, "--set", "rounds.num_rounds=1").code == 0
    assert (tmp_path / "runs" / "tiny-vit" / "summary.json").is_file()


def test_overwrite_replaces_a_run(run: Run, file: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        assert run("simulate", file, "--out", tmp_path / "run", "--overwrite", "--set", f"seed={seed}").code == 0
    assert "seed = 2" in (tmp_path / "run" / "config.toml").read_text()


def test_a_failed_run_ends_with_one(run: Run, file: Path, tmp_path: Path) -> None:
    changes = ("--set", "train.learning_rate=1e30", "--set", "train.optimizer=sgd")
    said = run("simulate", file, "--out", tmp_path / "run", *changes)
    assert said.code == 1
    assert said.err.startswith("error: round 1: 0 client(s) replied")
    assert "training diverged" in said.err
    assert "Traceback" not in said.err


def test_a_full_disk_is_one_message(run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "rounds.jsonl")

    monkeypatch.setattr(server, "run_round", full)
    said = run("simulate", file, "--out", tmp_path / "run")
    assert said.code == 1
    assert said.err == "error: [Errno 28] No space left on device: 'rounds.jsonl'\n"


def test_an_interrupted_run_says_how_to_go_on_and_does(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rounds = server.run_round, []

    def interrupted(federation: Any, state: Any, number: int) -> Any:
        rounds.append(number)
        if rounds == [1, 2]:
            raise KeyboardInterrupt
        return whole(federation, state, number)

    monkeypatch.setattr(server, "run_round", interrupted)
    said = run("simulate", file, "--out", tmp_path / "run", "--set", "seed=5")
    assert said.code == 130
    hint = said.err.partition("go on with: fedpeft ")[2]
    assert run(*shlex.split(hint)).code == 0
    assert rounds == [1, 2, 2, 3]
    assert run("simulate", file, "--out", tmp_path / "whole", "--set", "seed=5").code == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def test_an_interrupt_before_the_run_says_that_nothing_was_written(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "assemble", interrupted)
    said = run("simulate", file, "--out", tmp_path / "run")
    assert (said.code, said.err) == (130, "interrupted; nothing has been written\n")
    assert not (tmp_path / "run").exists()


def test_validate_names_each_file(run: Run, file: Path) -> None:
    said = run("validate", file, file)
    assert said.code == 0
    assert [line.partition(": valid, ")[0] for line in said.out.splitlines()] == [str(file), str(file)]


def test_validate_tells_every_error_of_every_file(run: Run, file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(file.read_text().replace("rank = 2", "rank = -2").replace('name = "iid"', 'name = "idd"'))
    said = run("validate", file, bad, tmp_path / "none.toml")
    assert said.code == 2
    assert said.out.startswith(f"{file}: valid")
    for words in ("adapter.rank = -2: expected an integer >= 1", "did you mean 'iid'?", "none.toml: cannot be read"):
        assert words in said.err


def test_list_names_every_plugin_one_a_line_without_importing_torch() -> None:
    program = (
        "import sys\nfrom fedpeft.cli import main\nsys.argv = ['fedpeft', 'list']\n"
        "try:\n    main()\nfinally:\n    loaded = {'torch', 'transformers', 'flwr'} & set(sys.modules)\n"
        "    from huggingface_hub.utils import logging\n    print(sorted(loaded), logging.get_verbosity())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[] 40"
    listed = [line.split()[0] for line in lines]
    assert listed == [word for group in plugins.GROUPS for word in (group, *plugins.names(group))]


def test_list_takes_one_group(run: Run) -> None:
    assert [line.split()[0] for line in run("list", "codec").out.splitlines()] == ["codec", *plugins.names("codec")]


def test_evaluate_gives_the_metrics_of_the_last_round(run: Run, image_run: Path) -> None:
    said = run("evaluate", image_run)
    last = json.loads((image_run / "rounds.jsonl").read_text().splitlines()[-1])
    assert said.code == 0
    assert json.loads(said.out) == pytest.approx(last["metrics"])


def test_predict_answers_each_text_with_a_label(run: Run, text_run: Path, tmp_path: Path) -> None:
    said = run("predict", text_run, *TEXTS[:3])
    assert said.code == 0
    assert len(said.out.splitlines()) == 3
    assert set(said.out.split()) <= {"table", "thing"}
    lines = tmp_path / "inputs.jsonl"
    lines.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:3]) + "\n\n")
    assert run("predict", text_run, "--file", lines) == said


def test_predict_takes_a_pair(run: Run, text_run: Path, tmp_path: Path) -> None:
    lines = tmp_path / "inputs.jsonl"
    lines.write_text(json.dumps({"text": TEXTS[0], "text2": "again"}))
    said = run("predict", text_run, TEXTS[0], "--text2", "again")
    assert said.code == 0
    assert said == run("predict", text_run, "--file", lines)


def test_predict_reads_images_from_a_file(run: Run, image_run: Path, tmp_path: Path) -> None:
    lines = tmp_path / "images.jsonl"
    lines.write_text("".join(json.dumps({"image": [[[value] * 8] * 8]}) + "\n" for value in (0.0, 0.5)))
    said = run("predict", image_run, "--file", lines)
    assert said.code == 0
    assert len(said.out.splitlines()) == 2
    assert set(said.out.split()) <= {"0", "1", "2"}


def test_predict_continues_a_prompt_on_one_line(run: Run, tmp_path: Path) -> None:
    path = finished(
        tmp_path,
        **text_table(
            model=LLAMA,
            data={"path": str(write_texts(tmp_path)), "text2": None, "label": None},
            task={"name": "causal_lm", "text": "plain", "max_length": 32, "max_new_tokens": 8},
        ),
    )
    said = run("predict", path, "rows of", "a red")
    assert said.code == 0
    assert len(said.out.splitlines()) == 2


def logits(run: FinishedRun, model: torch.nn.Module) -> torch.Tensor:
    """Return what a model says of the texts, encoded by the run's own task and tokenizer."""
    task, tokenizer = run.adapted.task, run.adapted.loaded.tokenizer
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt") if tokenizer else {}
    assert task.kind == "sequence_classification"
    with torch.inference_mode():
        return torch.as_tensor(model.eval()(**to_device(dict(encoded), model)).logits)


def test_the_exported_adapter_loads_with_peft_on_the_plain_base(run: Run, text_run: Path, tmp_path: Path) -> None:
    assert run("export", text_run, tmp_path / "adapter").code == 0
    trained = open_run(text_run)
    names = trained.adapted.label_names
    seed = seeds.derive(trained.experiment.seed, "model")
    wanted = Wanted(kind="sequence_classification", label_names=names, seed=seed)
    base = trained.experiment.model.build().load(wanted).model
    host = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(trained, host), logits(trained, trained.adapted.attached.model))


def test_the_merged_model_loads_with_plain_transformers(run: Run, text_run: Path, tmp_path: Path) -> None:
    said = run("export", text_run, tmp_path / "merged", "--merge")
    assert (said.code, said.err) == (0, "")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    trained = open_run(text_run)
    torch.testing.assert_close(logits(trained, plain), logits(trained, trained.adapted.attached.model))
    assert plain.config.id2label == dict(enumerate(trained.adapted.label_names))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert trained.adapted.loaded.tokenizer is not None
    assert tokenizer(TEXTS)["input_ids"] == trained.adapted.loaded.tokenizer(TEXTS)["input_ids"]
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_version_and_help(run: Run) -> None:
    assert run("--version") == Said(0, f"fedpeft {__version__}\n", "")
    said = run("--help")
    assert said.code == 0
    for command in ("simulate", "validate", "list", "evaluate", "predict", "export"):
        assert f"\n  {command} " in said.out
        assert run(command, "--help").code == 0
    assert "..." not in said.out.replace("[ARGS]...", "")


@pytest.mark.parametrize("arguments", [("simulate", "--nope"), ("nope",), ("simulate",), ("list", "a", "b")])
def test_a_wrong_command_line_ends_with_two(run: Run, arguments: tuple[str, ...]) -> None:
    said = run(*arguments)
    assert (said.code, said.out) == (2, "")
    assert "Error: " in said.err


def test_a_privacy_plan_needs_less_noise_for_more_budget(run: Run) -> None:
    asked = ["privacy", "plan", "--epsilon=2", "--delta=1e-6", "--clients=1000", "--rounds=50"]

    rows = json.loads(run(*asked, "--cohort=100", "--json", "--accountant=rdp").out)["rows"]

    by = {row["choice"]: row for row in rows}
    assert by["epsilon x 2"]["noise_multiplier"] < by["as asked"]["noise_multiplier"]
    assert by["cohort x 10"]["noise_to_signal"] < by["as asked"]["noise_to_signal"]
    assert "as asked" in run(*asked, "--cohort=100", "--accountant=rdp", "--parameters=100").out
    assert run(*asked, "--cohort=100", "--accountant=gdp").code == 2
    assert "at most --clients = 1000" in run(*asked, "--cohort=2000").err


def test_what_a_run_has_spent_is_read_from_its_ledger(run: Run, tmp_path: Path) -> None:
    table = {"unit": "client", "noise_multiplier": 3.0, "delta": 1e-5, "clip": 1.0, "accountant": "rdp"}
    strategy = {"name": "fedavg", "weighting": "uniform"}
    summary = inline.simulate(tiny(tmp_path / "run", privacy=table, strategy=strategy))
    inline.simulate(tiny(tmp_path / "plain"))

    assert json.loads(run("privacy", "spent", tmp_path / "run").out) == summary["privacy"]
    refused = run("privacy", "spent", tmp_path / "plain")
    assert refused.code == 2
    assert "without [privacy]" in refused.err


def test_what_two_runs_cost_together_is_between_the_larger_and_the_sum(run: Run, tmp_path: Path) -> None:
    strategy = {"name": "fedavg", "weighting": "uniform"}
    table = {"unit": "client", "noise_multiplier": 3.0, "delta": 1e-5, "clip": 1.0, "accountant": "rdp"}
    alone = [
        inline.simulate(tiny(tmp_path / name, privacy=table | change, strategy=strategy))["privacy"]["epsilon"]
        for name, change in (("one", {}), ("two", {"noise_multiplier": 5.0, "delta": 1e-4}))
    ]

    said = json.loads(run("privacy", "spent", tmp_path / "one", tmp_path / "two").out)

    assert (said["delta"], said["unit"], len(said["runs"])) == (1e-5, "client", 2)
    assert alone[0] < said["epsilon"] < alone[0] + alone[1] + 1
    more = json.loads(run("privacy", "spent", tmp_path / "one", tmp_path / "two", "--delta=1e-8").out)
    assert more["epsilon"] > said["epsilon"]
    assert "given twice" in run("privacy", "spent", tmp_path / "one", tmp_path / "one").err
    assert "without effect on one run" in run("privacy", "spent", tmp_path / "one", "--delta=1e-8").err


def test_a_clients_own_ledgers_are_read_from_its_state(run: Run, tmp_path: Path) -> None:
    ledger = OwnLedger(folder=tmp_path / "privacy", experiment="f" * 64, client=1)
    made = of("example")
    ledger.charge(Charge(round=1, clients=(1,), inputs="x"), made)

    said = json.loads(run("privacy", "own", tmp_path, "--delta=1e-5").out)

    assert said["epsilon"]["1"]["example"] == pytest.approx(made.spent(1))
    assert "no ledger of any client" in run("privacy", "own", tmp_path / "privacy" / "none", "--delta=1e-5").err
