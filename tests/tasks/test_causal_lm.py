"""Language modelling: what is predicted, against sums by hand and a plain oracle in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError

from fedpeft.errors import DataError, UnsupportedError
from fedpeft.models.base import Kind, Loaded
from fedpeft.tasks.base import Batch
from fedpeft.tasks.causal_lm import Options, make

Load = Callable[[str, Kind], Loaded]
ANSWERS = Options(max_length=64, max_new_tokens=8)
END = 4


def oracle(logits: np.ndarray, batch: Batch) -> list[tuple[float, int, int]]:
    """(sum of nats, predicted tokens, correct ones) of each row, one token at a time."""
    rows = []
    for scores, labels in zip(logits.astype(np.float64), batch["labels"].tolist(), strict=True):
        nats, count, correct = 0.0, 0, 0
        for place, target in enumerate(labels[1:]):
            if target != -100:
                row = scores[place] - scores[place].max()
                nats += math.log(np.exp(row).sum()) - row[target]
                count, correct = count + 1, correct + int(row.argmax() == target)
        rows.append((nats, count, correct))
    return rows


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("text", ["prompt_answer", "plain"])
def test_losses_and_scores_are_the_oracles(architecture: str, text: str, load: Load, data: Dataset) -> None:
    task = make(Options.model_validate({"text": text}))
    loaded = load(architecture, "causal_lm")
    batch = task.collate(task.encode(data, loaded.tokenizer))
    logits = loaded.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach().numpy()

    rows = oracle(logits, batch)
    nats, count, correct = (sum(column) for column in zip(*rows, strict=True))
    totals = task.score(loaded.model, batch)

    assert task.losses(loaded.model, batch).tolist() == pytest.approx([row[0] / row[1] for row in rows], rel=1e-5)
    assert totals == pytest.approx({"loss": nats, "weight": count, "correct": correct}, rel=1e-5)
    assert task.metrics(totals) == pytest.approx(
        {"loss": nats / count, "perplexity": math.exp(nats / count), "token_accuracy": correct / count}, rel=1e-5
    )


def test_only_the_answer_and_its_end_are_predicted(load: Load) -> None:
    tokenizer = load("llama", "causal_lm").tokenizer
    assert tokenizer is not None
    data = Dataset.from_dict({"prompt": ["ab", ""], "answer": ["c", "de"]})
    task = make(ANSWERS)
    a, b, c, d, e = tokenizer("abcde")["input_ids"]

    batch = task.collate(task.encode(data, tokenizer))

    # Without a prompt the end of another text is what the first token is predicted from.
    assert batch["input_ids"].tolist() == [[a, b, c, END], [END, d, e, END]]
    assert batch["labels"].tolist() == [[-100, -100, c, END], [-100, d, e, END]]
    assert batch["attention_mask"].tolist() == [[1] * 4] * 2


def test_padding_is_not_predicted(load: Load) -> None:
    data = Dataset.from_dict({"prompt": ["ab", "c"], "answer": ["", "defg"]})
    task = make(ANSWERS)

    batch = task.collate(task.encode(data, load("gpt2", "causal_lm").tokenizer))

    assert batch["labels"][0].tolist() == [-100, -100, END, -100, -100, -100]
    assert batch["input_ids"][0, 3:].tolist() == [0, 0, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]


@pytest.mark.parametrize(
    ("prompt", "answer", "kept"),
    [
        ("0123456789", "ab", "3456789ab"),
        ("012", "abcdefghijkl", "012abcdefg"),
        ("0123456789", "abcdefghijkl", "56789abcde"),
    ],
)
def test_a_long_prompt_loses_its_beginning_and_a_long_answer_its_end(
    prompt: str, answer: str, kept: str, load: Load
) -> None:
    tokenizer = load("llama", "causal_lm").tokenizer
    assert tokenizer is not None
    task = make(Options(max_length=10, max_new_tokens=4))

    (row,) = task.encode(Dataset.from_dict({"prompt": [prompt], "answer": [answer]}), tokenizer)

    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == kept
    assert int(row["num_given"]) == sum(letter.isdigit() for letter in kept)


def test_plain_texts_are_cut_one_by_one(load: Load) -> None:
    tokenizer = load("llama", "causal_lm").tokenizer
    assert tokenizer is not None
    task = make(Options(text="plain", max_length=8, max_new_tokens=4))

    rows = task.encode(Dataset.from_dict({"text": ["abc", "0123456789"]}), tokenizer)

    assert [tokenizer.decode(row["input_ids"]) for row in rows] == ["[EOS]abc[EOS]", "[EOS]0123456"]
    assert task.columns() == ("text",)


def test_packed_texts_are_predicted_once_each_token(load: Load) -> None:
    tokenizer = load("llama", "causal_lm").tokenizer
    assert tokenizer is not None
    task = make(Options(text="packed", max_length=8, max_new_tokens=4))

    rows = task.encode(Dataset.from_dict({"text": ["abc", "0123456789"]}), tokenizer)

    assert [tokenizer.decode(row["input_ids"]) for row in rows] == ["[EOS]abc[EOS]012", "[EOS]3456789", "[EOS][EOS]"]
    predicted = int(sum((task.collate([row])["labels"] != -100).sum() for row in rows))
    assert predicted == len("abc") + len("0123456789") + 2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_predictions_are_greedy_whatever_stands_beside_them(architecture: str, load: Load) -> None:
    loaded, task = load(architecture, "causal_lm"), make(ANSWERS)
    assert loaded.tokenizer is not None
    prompts = ["a", "a longer prompt", ""] * 7

    answers = task.predict(loaded.model, loaded.tokenizer, [{"prompt": prompt} for prompt in prompts], ())

    assert answers[:3] * 7 == answers
    for prompt, answer in zip(prompts[:3], answers[:3], strict=True):
        tokens = loaded.tokenizer(prompt)["input_ids"] or [END]
        written: list[int] = []
        while len(written) < 8 and END not in written:
            written.append(int(loaded.model(torch.tensor([tokens + written])).logits[0, -1].argmax()))
        assert answer == loaded.tokenizer.decode(written, skip_special_tokens=True)


def test_a_long_prompt_leaves_room_for_what_is_written(load: Load) -> None:
    loaded = load("gpt2", "causal_lm")
    task = make(Options(max_length=128, max_new_tokens=100))

    (answer,) = task.predict(loaded.model, loaded.tokenizer, [{"prompt": "x" * 500}], ())

    assert isinstance(answer, str)


def test_perplexity_of_a_hopeless_model_is_infinite() -> None:
    assert make(ANSWERS).metrics({"loss": 5000.0, "weight": 5.0, "correct": 0.0})["perplexity"] == math.inf


@pytest.mark.parametrize("missing", ["prompt", "answer"])
def test_a_missing_column_is_named(missing: str, load: Load, data: Dataset) -> None:
    with pytest.raises(DataError, match=f"no column '{missing}'; there is: .*text"):
        make(ANSWERS).encode(data.remove_columns(missing), load("llama", "causal_lm").tokenizer)


def test_a_missing_prompt_is_named(load: Load) -> None:
    loaded = load("llama", "causal_lm")

    with pytest.raises(DataError, match="input 0 has no 'prompt'; it has: text"):
        make(ANSWERS).predict(loaded.model, loaded.tokenizer, [{"text": "x"}], ())


def test_a_tokenizer_without_an_end_is_refused(load: Load, data: Dataset) -> None:
    with pytest.raises(UnsupportedError, match="no end-of-text token"):
        make(ANSWERS).encode(data, load("bert", "sequence_classification").tokenizer)


def test_no_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected <= max_length - 2 = 30"):
        Options(max_length=32, max_new_tokens=31)


def test_no_head_is_new(load: Load) -> None:
    assert make(ANSWERS).head(load("llama", "causal_lm").model) == ()
