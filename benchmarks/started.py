"""Frozen bases for mr_polarity and qnli: MiniLM, trained whole on a public part of the data before the federation.

As it comes MiniLM encodes sentences for similarity, by a mean that its classifier does not read, and knows no pairs: an
adapter in its last block hardly leaves chance within the examples that benchmarks/aggregation.py can afford. The public
part is never federated, and the base is written without its classifier, so that each run begins with a head of its own.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from benchmarks.intents import drawn
from fedpeft.config import Train
from fedpeft.data.sources import table
from fedpeft.models import minilm
from fedpeft.models.base import Wanted
from fedpeft.tasks import sequence_classification
from fedpeft.training.loop import evaluate, train_locally

__all__ = ["STARTED", "Started", "prepare_started"]


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
}


def prepare_started(source: Path, folder: Path, base: Started) -> dict[str, Any]:
    """Write public.parquet, train.parquet and the checkpoint ``base/`` once; return what the base came to."""
    told = folder / "base.json"
    if told.exists():
        made: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
        if made["made_of"] == _listed(base):
            return made
    folder.mkdir(parents=True, exist_ok=True)
    whole = pq.read_table(source / "train.parquet")
    public = drawn(whole["label"].to_numpy(), share=base.public_share, seed=base.seed)
    pq.write_table(whole.filter(public), folder / "public.parquet")
    pq.write_table(whole.filter(~public), folder / "train.parquet")
    accuracy = _train(base, folder)
    made = {"made_of": _listed(base), "num_public": int(public.sum()), "validation_accuracy": accuracy}
    told.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return made


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


def _listed(base: Started) -> Any:
    """Return what the base is made of as JSON has it."""
    return json.loads(json.dumps(asdict(base)))
