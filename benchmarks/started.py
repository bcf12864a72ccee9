"""Frozen bases for real data: MiniLM, trained whole on a public part of a data set before the federation.

As it comes MiniLM encodes sentences for similarity, by a mean that its classifier does not read, and knows no pairs: an
adapter in its last block hardly leaves chance within the examples that a benchmark can afford. The public part is never
federated, and the base is written without its classifier, so that each run begins with a head of its own.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import save_file

from benchmarks.intents import deal
from benchmarks.jobs import DATA, ROOT, made_once
from fedpeft.config import Train
from fedpeft.data.sources import table
from fedpeft.models import minilm
from fedpeft.models.base import Wanted
from fedpeft.tasks import sequence_classification
from fedpeft.training.loop import evaluate, train_locally

__all__ = ["BASES", "IN_LAST_BLOCK", "LAST_BLOCK", "STARTED", "Started", "federated", "frozen", "prepare_started"]

BASES = ROOT / "runs" / "benchmarks" / "aggregation"
"""Of each data set: public.parquet, train.parquet (what is federated), and the checkpoint base/."""
LAST_BLOCK = "encoder.layer.5."
"""What enters it is computed once for all runs of a seed, where nothing below it is adapted."""
IN_LAST_BLOCK = [
    f"{LAST_BLOCK}{place}"
    for place in ("attention.self.query", "attention.self.value", "intermediate.dense", "output.dense")
]
"""Where LoRA is in it, unless a benchmark says otherwise."""


@final
@dataclass(frozen=True, kw_only=True)
class Started:
    """What the base is made of; the same values on as many threads give the same base."""

    columns: tuple[tuple[str, str], ...]
    public_share: float
    """Of each label's training examples."""
    max_length: int
    num_steps: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-4
    seed: int = 2019


_TEXT = (("text", "text"), ("label", "label"))
STARTED = {
    "mr_polarity": Started(columns=_TEXT, public_share=0.25, max_length=32),
    "qnli": Started(columns=(*_TEXT, ("text2", "text_b")), public_share=0.4, max_length=48),
    "clinc150": Started(columns=_TEXT, public_share=0.35, max_length=24, num_steps=300),
}


def frozen(name: str) -> dict[str, Any]:
    """Return the model table of a data set's base."""
    return {"name": "pretrained", "path": str(BASES / _folder(name) / "base"), "dropout": 0.0}


def federated(name: str) -> Path:
    """Return the file of a data set's private part."""
    return BASES / _folder(name) / "train.parquet"


def _folder(name: str) -> str:
    return "clinc150_minilm" if name == "clinc150" else name  # clinc150's own folder is that of benchmarks/intents.py


def prepare_started(name: str) -> dict[str, Any]:
    """Write a data set's two parts and its base once; return what the base came to."""
    return made_once(BASES / _folder(name) / "base.json", asdict(STARTED[name]), lambda: _prepared(name))


def _prepared(name: str) -> dict[str, Any]:
    base, folder = STARTED[name], BASES / _folder(name)
    num_public = deal(DATA / name, folder, share=base.public_share, seed=base.seed)
    return {"num_public": num_public, "validation_accuracy": _train(base, folder)}


def _train(base: Started, folder: Path) -> float:
    """Train everything, save all but the classifier, return its accuracy with it on the private part."""
    torch.set_num_threads(2)
    paths = {"path": str(folder / "public.parquet"), "test_path": str(folder / "train.parquet")}
    options = table.Options(**paths, **dict(base.columns), max_test=500)  # type: ignore[arg-type]
    splits = table.make(options).load(seed=base.seed)
    wanted = Wanted(kind="sequence_classification", label_names=splits.label_names, seed=base.seed)
    loaded = minilm.make(minilm.Options(dropout=0.0)).load(wanted)
    task = sequence_classification.make(sequence_classification.Options(max_length=base.max_length))
    train = Train(local_steps=base.num_steps, batch_size=base.batch_size, weight_decay=0.01)
    examples, unseen = (task.encode(split, loaded.tokenizer) for split in (splits.train, splits.test))
    model: Any = loaded.model.requires_grad_(True)
    parameters = dict(model.named_parameters())
    train_locally(model, parameters, examples, task=task, train=train, rate=base.learning_rate, seed=base.seed)
    model.config.save_pretrained(folder / "base")
    loaded.tokenizer.save_pretrained(folder / "base")  # type: ignore[union-attr]
    body = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("classifier.")}
    save_file(body, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    return task.metrics(evaluate(model, unseen, task=task, batch_size=64))["accuracy"]
