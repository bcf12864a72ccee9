"""The same local work for every side of ``simulation``: a checkpoint in a folder, texts, and the clients' tokens."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedModel,
)

from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.models._tokenizer import PAD_ID, byte_tokenizer
from fedpeft.training.workbench import assemble

__all__ = ["BATCH", "RATE", "STEPS", "Batch", "Part", "batches", "experiment", "load_base", "prepare", "with_lora"]

STEPS, BATCH, RANK, RATE, LABELS, LENGTH = 4, 8, 4, 1e-3, 4, 64
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}
Batch = dict[str, Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """One cell: a model's shape and how many clients train in each round."""

    architecture: str
    hidden_size: int
    num_layers: int
    clients: int
    vocabulary: int = 512

    @property
    def name(self) -> str:
        """How it is asked for."""
        return f"{self.architecture}{self.hidden_size}x{self.num_layers}-{self.clients}"

    @property
    def text(self) -> bool:
        """Whether it continues texts instead of sorting them."""
        return self.architecture == "llama"


def prepare(part: Part, folder: Path) -> None:
    """Write base/ (a checkpoint with tokenizer), train.csv and test.csv, clients.safetensors and part.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part.json").write_text(json.dumps(asdict(part)), encoding="utf-8")
    _base(part).save_pretrained(folder / "base")
    byte_tokenizer(max_length=LENGTH, pairs=not part.text).save_pretrained(folder / "base")
    draw = random.Random(0)  # noqa: S311
    for name, number in (("train", part.clients * STEPS * BATCH), ("test", 64)):
        rows = [_row(part, draw) for _ in range(number)]
        head = "text" if part.text else "text,label"
        (folder / f"{name}.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    bench = assemble(experiment(folder, folder / "nowhere", rounds=1))
    examples = [bench.client_examples(client)[0] for client in range(part.clients)]
    batch = bench.adapted.task.collate([rows[at] for rows in examples for at in range(STEPS * BATCH)])
    save_file({name: value.contiguous() for name, value in batch.items()}, folder / "clients.safetensors")


def _base(part: Part) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "hidden_size": part.hidden_size,
        "num_hidden_layers": part.num_layers,
        "num_attention_heads": max(2, part.hidden_size // 32),
        "intermediate_size": 4 * part.hidden_size if part.hidden_size > 64 else 128,
        "max_position_embeddings": LENGTH,
        "vocab_size": part.vocabulary,
        "pad_token_id": PAD_ID,
    }
    torch.manual_seed(0)
    if part.text:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(LlamaConfig(**shape))
        return model
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": LABELS}
    return AutoModelForSequenceClassification.from_config(BertConfig(**shape, **drop))


def _row(part: Part, draw: random.Random) -> str:
    label = draw.randrange(LABELS)
    text = " ".join(draw.choices(WORDS[2 * label : 2 * label + 4], k=5))
    return text if part.text else f"{text},l{label}"


def experiment(folder: Path, out: Path, *, rounds: int, **changes: dict[str, Any]) -> Experiment:
    """Return the federation; evaluated before the first round and after the last alone."""
    part = Part(**json.loads((folder / "part.json").read_text(encoding="utf-8")))
    kind = {"name": "causal_lm", "text": "plain"} if part.text else {"name": "sequence_classification"}
    table: dict[str, dict[str, Any]] = {
        "model": {"name": "pretrained", "path": str(folder / "base")},
        "data": {
            "name": "table",
            "path": str(folder / "train.csv"),
            "test_path": str(folder / "test.csv"),
            "text": "text",
            **({} if part.text else {"label": "label"}),
        },
        "partition": {"name": "iid", "num_clients": part.clients},
        "task": {**kind, "max_length": LENGTH},
        "adapter": {"name": "lora", "rank": RANK, "alpha": 2 * RANK, "target_modules": TARGETS[part.architecture]},
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "train": {"local_steps": STEPS, "batch_size": BATCH, "learning_rate": RATE},
        "rounds": {"num_rounds": rounds},
        "evaluate": {"every": rounds},
        "compute": {"num_threads": 1},
        "output": {"directory": str(out)},
    }
    for name, change in changes.items():
        table[name] = {**table.get(name, {}), **change}
    return config.parse({"name": "simulation", "seed": 1, **table})


def load_base(folder: Path) -> PreTrainedModel:
    """Read the checkpoint as anyone would."""
    part = Part(**json.loads((folder / "part.json").read_text(encoding="utf-8")))
    family = AutoModelForCausalLM if part.text else AutoModelForSequenceClassification
    model: PreTrainedModel = family.from_pretrained(folder / "base", attn_implementation="eager")
    return model


def with_lora(folder: Path, base: PreTrainedModel) -> PeftModel:
    """Return the model with peft's LoRA on it, its classifier trained too."""
    part = Part(**json.loads((folder / "part.json").read_text(encoding="utf-8")))
    kind = "CAUSAL_LM" if part.text else "SEQ_CLS"
    settings = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS[part.architecture], task_type=kind, lora_dropout=0.0
    )
    model: PeftModel = get_peft_model(base, settings)
    return model


def batches(folder: Path, client: int) -> list[Batch]:
    """Return one client's batches of a round, each as long as its longest text."""
    found, rows = load_file(folder / "clients.safetensors"), []
    for step in range(STEPS):
        first = (client * STEPS + step) * BATCH
        batch = {name: value[first : first + BATCH] for name, value in found.items()}
        length = int(batch["attention_mask"].sum(1).max())
        rows.append({name: value[:, :length] if value.dim() > 1 else value for name, value in batch.items()})
    return rows
