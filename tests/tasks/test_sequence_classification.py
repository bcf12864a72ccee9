"""Classification of texts: rows, counts by hand, and the right errors."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from fedpeft.errors import DataError, UnsupportedError
from fedpeft.models.base import Kind, Loaded
from fedpeft.tasks.sequence_classification import Options, make

Load = Callable[[str, Kind], Loaded]
KIND: Kind = "sequence_classification"


class Fixed(nn.Module):
    """A model that answers with given logits."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


def test_counts_by_hand() -> None:
    model = Fixed([[0.0, 0.0], [0.0, 3.0], [2.0, 1.0], [1.0, 4.0]])
    batch = {"input_ids": torch.zeros(4, 1), "labels": torch.tensor([0, 1, 1, 0])}
    task = make(Options())

    totals = task.score(model, batch)

    by_hand = [0.69314718, 0.04858735, 1.31326169, 3.04858735]
    assert task.losses(model, batch).tolist() == pytest.approx(by_hand, abs=1e-6)
    assert totals == pytest.approx({"loss": sum(by_hand), "weight": 4, "correct": 2}, abs=1e-6)
    assert task.metrics(totals) == pytest.approx({"loss": sum(by_hand) / 4, "accuracy": 0.5}, abs=1e-6)
    assert list(task.metrics(totals)) == ["loss", "accuracy"]


def test_rows_and_padding_by_hand(load: Load) -> None:
    tokenizer = load("bert", KIND).tokenizer
    assert tokenizer is not None
    data = Dataset.from_dict({"text": ["ab", "c"], "text2": ["d", "efgh"], "label": [1, 0]})
    task = make(Options())

    batch = task.collate(task.encode(data, tokenizer))

    assert [tokenizer.decode(row) for row in batch["input_ids"]] == [
        "[CLS]ab[SEP]d[SEP][PAD][PAD]",
        "[CLS]c[SEP]efgh[SEP]",
    ]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [1] * 8]
    assert batch["labels"].tolist() == [1, 0]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_a_decoder_is_padded_with_its_own_id_and_an_empty_text_is_one_token(load: Load) -> None:
    loaded = load("llama", KIND)
    task = make(Options())

    batch = task.collate(task.encode(Dataset.from_dict({"text": ["abc", ""], "label": [0, 0]}), loaded.tokenizer))

    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"][1].tolist() == [loaded.model.config.pad_token_id] * 3
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_long_texts_are_cut(load: Load) -> None:
    data = Dataset.from_dict({"text": ["x" * 500], "text2": ["y" * 3], "label": [0]})

    (row,) = make(Options(max_length=16)).encode(data, load("bert", KIND).tokenizer)

    assert len(row["input_ids"]) == len(row["token_type_ids"]) == 16
    assert int(row["token_type_ids"].sum()) == 4


def test_more_tokens_than_the_model_reads_are_refused(load: Load, data: Dataset) -> None:
    with pytest.raises(UnsupportedError, match=r"max_length = 129: the model reads at most 128 tokens"):
        make(Options(max_length=129)).encode(data, load("bert", KIND).tokenizer)


def test_a_model_without_a_tokenizer_is_refused(data: Dataset) -> None:
    with pytest.raises(UnsupportedError, match="no tokenizer"):
        make(Options()).encode(data, None)


@pytest.mark.parametrize("missing", ["text", "label"])
def test_a_missing_column_is_named_with_those_present(missing: str, load: Load, data: Dataset) -> None:
    with pytest.raises(DataError, match=f"no column '{missing}'; there is: .*prompt"):
        make(Options()).encode(data.remove_columns(missing), load("bert", KIND).tokenizer)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("text", ["ok", None], "column 'text', row 1: expected a text, got None"),
        ("label", [0, -1], "column 'label', row 1: expected a class index >= 0, got -1"),
        ("label", [None, 0], "column 'label', row 0: expected a class index >= 0, got None"),
        ("label", [0.5, 0.0], "row 0: expected a class index"),
    ],
)
def test_a_bad_value_is_named(column: str, values: list[object], message: str, load: Load) -> None:
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0, 0], column: values})

    with pytest.raises(DataError, match=message):
        make(Options()).encode(data, load("bert", KIND).tokenizer)


def test_no_examples_are_no_rows(load: Load, data: Dataset) -> None:
    assert len(make(Options()).encode(data.select([]), load("bert", KIND).tokenizer)) == 0


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_predictions_are_the_likeliest_labels(architecture: str, load: Load, data: Dataset) -> None:
    loaded, task, names = load(architecture, KIND), make(Options()), ["zero", "one", "two"]
    texts = data["text"][:] * 12
    rows = task.encode(data, loaded.tokenizer)
    expected = [
        names[int(loaded.model(**{k: v for k, v in task.collate([row]).items() if k != "labels"}).logits.argmax())]
        for row in rows
    ]

    assert task.predict(loaded.model, loaded.tokenizer, [{"text": text} for text in texts], names) == expected * 12
    assert task.predict(loaded.model, loaded.tokenizer, [], names) == []


def test_a_prediction_reads_both_texts(load: Load) -> None:
    loaded, task = load("bert", KIND), make(Options())

    with pytest.raises(DataError, match="input 1 has no 'text2'; it has: text"):
        task.predict(loaded.model, loaded.tokenizer, [{"text": "a", "text2": "b"}, {"text": "c"}], ["x", "y", "z"])
    with pytest.raises(DataError, match="'text' of input 0: expected a text, got 7"):
        task.predict(loaded.model, loaded.tokenizer, [{"text": 7}], ["x", "y", "z"])


def test_the_head_is_the_classifier(load: Load) -> None:
    assert make(Options()).head(load("bert", KIND).model) == ("classifier",)
    assert make(Options()).columns() == ("text", "label")
