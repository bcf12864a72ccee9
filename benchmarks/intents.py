"""A small frozen base for CLINC150: a transformer trained from scratch on a public part of the pooled utterances.

The public part is drawn evenly from all intents and never federated; the words it has are the vocabulary. The base is
written as a checkpoint in a local folder, without its classifier, so that each run begins with a head of its own.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.jobs import made_once
from fedpeft.config import Train
from fedpeft.data.sources import table
from fedpeft.seeds import isolated
from fedpeft.tasks import sequence_classification
from fedpeft.training.loop import evaluate, train_locally

__all__ = ["Base", "deal", "prepare"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@final
@dataclass(frozen=True, kw_only=True)
class Base:
    """What the base is made of; the same values give the same base."""

    public_share: float = 0.35
    """Of each intent's training utterances."""
    label: str = "label"
    """Column that the base learns to tell."""
    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    intermediate_size: int = 256
    max_length: int = 20
    num_steps: int = 1500
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 2019


def prepare(source: Path, folder: Path, base: Base) -> dict[str, Any]:
    """Write public.parquet, train.parquet and the checkpoint ``base/`` once; return what the base came to."""
    return made_once(folder / "base.json", asdict(base), lambda: _prepared(source, folder, base))


def _prepared(source: Path, folder: Path, base: Base) -> dict[str, Any]:
    num_public = deal(source, folder, share=base.public_share, seed=base.seed)
    return {"num_public": num_public, "validation_accuracy": _train(base, folder, source / "val.parquet")}


def deal(source: Path, folder: Path, *, share: float, seed: int) -> int:
    """Write public.parquet, the same share of every label, and train.parquet; return the number of public examples."""
    whole = pq.read_table(source / "train.parquet")
    public = drawn(whole["label"].to_numpy(), share=share, seed=seed)
    pq.write_table(whole.filter(public), folder / "public.parquet")
    pq.write_table(whole.filter(~public), folder / "train.parquet")
    return int(public.sum())


def drawn(labels: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """Return a mask (rows,) that holds the same share of every label."""
    mask, generator = np.zeros(len(labels), dtype=bool), np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        mask[generator.permutation(rows)[: round(share * len(rows))]] = True
    return mask


def _train(base: Base, folder: Path, validation: Path) -> float:
    """Train everything, save all but the classifier, return the accuracy it had with it."""
    torch.set_num_threads(1)
    columns = {"text": "text", "label": base.label}
    options = table.Options(path=str(folder / "public.parquet"), test_path=str(validation), **columns)
    splits = table.make(options).load(seed=base.seed)
    tokenizer = word_tokenizer(splits.train["text"], base.max_length)
    task = sequence_classification.make(sequence_classification.Options(max_length=base.max_length))
    with isolated(base.seed, "base"):
        model = BertForSequenceClassification(_config(base, len(tokenizer), len(splits.label_names)))
    train = Train(local_steps=base.num_steps, batch_size=base.batch_size, weight_decay=0.01)
    examples, unseen = task.encode(splits.train, tokenizer), task.encode(splits.test, tokenizer)
    parameters = dict(model.named_parameters())
    train_locally(model, parameters, examples, task=task, train=train, rate=base.learning_rate, seed=base.seed)
    model.config.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    body = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("classifier.")}
    save_file(body, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    return task.metrics(evaluate(model, unseen, task=task, batch_size=64))["accuracy"]


def word_tokenizer(texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of lower-case words that occur, framed as BERT's; all others are one token."""
    splitter = pre_tokenizers.Whitespace()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower()))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), splitter
    frame = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="[PAD]",  # noqa: S106 - a token's spelling, not a secret
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
    )


def _config(base: Base, num_tokens: int, num_labels: int) -> BertConfig:
    return BertConfig(
        vocab_size=num_tokens,
        pad_token_id=0,
        hidden_size=base.hidden_size,
        num_hidden_layers=base.num_layers,
        num_attention_heads=base.num_heads,
        intermediate_size=base.intermediate_size,
        max_position_embeddings=base.max_length,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        num_labels=num_labels,
    )
