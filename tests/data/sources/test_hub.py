from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from pydantic import ValidationError

from fedpeft.data.base import Splits
from fedpeft.data.sources import hub
from fedpeft.errors import DataError

REVISION = "0123456789abcdef0123456789abcdef01234567"
FEATURES = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive", "mixed"])})


def split(labels: list[int]) -> Dataset:
    return Dataset.from_dict({"sentence": [f"s{n}" for n in range(len(labels))], "label": labels}, features=FEATURES)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked of the hub, which has a train, a test and an unlabelled split."""
    calls: list[dict[str, Any]] = []
    splits = {"train": split([0, 1, 2] * 5), "test": split([1, 0]), "unlabelled": split([-1, -1])}

    def load_dataset(path: str, **given: Any) -> Dataset:
        calls.append({"path": path, **given})
        return splits[given["split"]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def load(**options: object) -> Splits:
    given = {"id": "org/name", "revision": REVISION, "text": "sentence", "label": "label", **options}
    return hub.make(hub.Options.model_validate(given)).load(seed=0)


def test_the_pinned_revision_is_asked_for_and_no_code_is_trusted(asked: list[dict[str, Any]]) -> None:
    load(config="small", test_split="test")
    assert asked == [
        {"path": "org/name", "name": "small", "split": "train", "revision": REVISION},
        {"path": "org/name", "name": "small", "split": "test", "revision": REVISION},
    ]


@pytest.mark.usefixtures("asked")
def test_class_numbers_become_names_sorted() -> None:
    splits = load(test_split="test")
    assert splits.label_names == ("mixed", "negative", "positive")
    assert splits.train["label"][:3] == [1, 2, 0]
    assert splits.test["label"][:] == [2, 1]


@pytest.mark.usefixtures("asked")
def test_without_a_test_split_a_share_is_held_out() -> None:
    splits = load(test_fraction=0.2, max_train=7)
    assert (len(splits.train), len(splits.test)) == (7, 3)


@pytest.mark.usefixtures("asked")
def test_a_split_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match=r"org/name, split 'unlabelled': row 1, column 'label': -1 is no class"):
        load(test_split="unlabelled")


@pytest.mark.usefixtures("asked")
def test_a_missing_column_lists_those_that_are_there() -> None:
    with pytest.raises(DataError, match=r"no column 'text' for data.text; the columns are sentence, label"):
        load(text="text")


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' doesn't exist"),
        datasets.exceptions.DatasetGenerationError("broken"),
        ConnectionError("Couldn't reach the hub"),
        ValueError("Unknown split 'train'"),
        RuntimeError("Dataset scripts are no longer supported"),
    ],
)
def test_whatever_the_hub_says_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(path: str, **given: Any) -> Dataset:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=rf"org/name, split 'train', revision {REVISION}: {type(error).__name__}.*HF_HOME"
    ):
        load()


def test_offline_without_a_cache_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match="without a connection, load it once"):
        load()


@pytest.mark.usefixtures("asked")
def test_a_local_folder_of_the_same_name_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.id = 'org/name' is also a path here"):
        load()


@pytest.mark.parametrize("revision", [None, "main", REVISION[:39], REVISION.upper()])
def test_a_revision_that_is_not_pinned_is_refused(revision: str | None) -> None:
    with pytest.raises(ValidationError, match="revision"):
        hub.Options.model_validate({"id": "org/name", "revision": revision, "text": "t"})


@pytest.mark.parametrize("name", ["", "/etc/data", "../data", "a/b/c", "./local"])
def test_an_id_that_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="id"):
        hub.Options(id=name, revision=REVISION, text="t")
