import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from datasets import concatenate_datasets
from pydantic import ValidationError

from fedpeft.data.base import Splits
from fedpeft.data.sources import docstrings
from fedpeft.errors import DataError

NAMES = re.compile(
    r"numpy|sklearn|scikit|torch|transformers|pandas|scipy|pyarrow|hugging|(?<![a-z])(?:np|pd|pa)(?![a-z])",
    re.IGNORECASE,
)


def load(seed: int = 0, **options: object) -> Splits:
    return docstrings.make(docstrings.Options.model_validate(options)).load(seed=seed)


def texts(splits: Splits) -> list[tuple[str, str]]:
    rows = concatenate_datasets([splits.train, splits.test])
    return [(splits.label_names[row["label"]], row["text"]) for row in rows]


@pytest.fixture(scope="module")
def default() -> Splits:
    return load(seed=7)


def test_defaults_give_a_balanced_task_of_six_packages(default: Splits) -> None:
    counts = Counter(package for package, _ in texts(default))
    assert counts == dict.fromkeys(docstrings.Options().packages, 400)
    assert len(default.test) == 480
    per_label = Counter(default.test["label"])
    assert all(50 <= per_label[label] <= 110 for label in range(6))


def test_no_package_name_is_left_in_any_text(default: Splits) -> None:
    assert [text for _, text in texts(default) if NAMES.search(text)] == []
    assert 0.05 < sum("[package]" in text for _, text in texts(default)) / 2400 < 0.5


def test_texts_are_distinct_and_within_the_bounds(default: Splits) -> None:
    found = [text for _, text in texts(default)]
    assert len({text.lower() for text in found}) == len(found)
    assert all(8 <= len(text.split()) <= 60 for text in found)
    assert all(">>>" not in text and "``" not in text and "\n" not in text for text in found)


def test_a_client_is_a_part_of_the_package(default: Splits) -> None:
    for row in default.test.select(range(50)):
        assert row["client"].split(".")[0] == default.label_names[row["label"]]


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data() -> None:
    options = {"packages": ("pydantic", "rich"), "max_per_package": 40}
    first, again, other = load(1, **options), load(1, **options), load(2, **options)
    assert first.train.to_dict() == again.train.to_dict()
    assert first.test.to_dict() == again.test.to_dict()
    assert set(texts(first)) != set(texts(other))


@pytest.fixture
def two_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = "Return the sum of the values in the list."
    for name, word in (("leftpkg", "rows"), ("rightpkg", "columns")):
        folder = tmp_path / name
        folder.mkdir()
        own = "\n".join(f'def f{n}():\n    """Return the number of {word} in the {n} tables."""' for n in "abcde")
        twice = f'def g():\n    """Return  the number of {word} in\n    the A tables."""'
        named = f'def h():\n    """Use {name}.core to sort the {word} of a table."""'
        (folder / "__init__.py").write_text(f'"""{shared}"""\n{own}\n{twice}\n{named}\nraise SystemExit("imported")\n')
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("two_packages")
def test_duplicates_are_kept_once_and_shared_texts_not_at_all() -> None:
    found = texts(load(packages=("leftpkg", "rightpkg"), min_words=5, test_fraction=0.5))
    assert Counter(package for package, _ in found) == {"leftpkg": 6, "rightpkg": 6}
    assert not any("sum of the values" in text for _, text in found)
    assert ("leftpkg", "Use [package] to sort the rows of a table.") in found
    assert "leftpkg" not in sys.modules


@pytest.mark.usefixtures("two_packages")
def test_long_texts_are_cut_and_short_ones_left_out() -> None:
    found = texts(load(packages=("leftpkg",), min_words=9, max_words=9, test_fraction=0.5))
    assert sorted(found)[0] == ("leftpkg", "Return the number of rows in the a tables.")
    with pytest.raises(DataError, match=r"'leftpkg' has no text of at least min_words = 30 words; lower"):
        load(packages=("leftpkg",), min_words=30)


@pytest.mark.usefixtures("two_packages")
def test_no_more_than_the_limit_are_kept() -> None:
    found = texts(load(packages=("leftpkg", "rightpkg"), min_words=5, max_per_package=3))
    assert Counter(package for package, _ in found) == {"leftpkg": 3, "rightpkg": 3}
    assert len(texts(load(packages=("leftpkg",), min_words=5, max_per_package=3))) == 3


def test_a_missing_package_is_named() -> None:
    with pytest.raises(DataError, match="'nunpy' is not an installed package; did you mean 'numpy'"):
        load(packages=("nunpy",))


@pytest.mark.parametrize(
    "options",
    [
        {"packages": ()},
        {"packages": ("numpy", "numpy")},
        {"packages": ("numpy.linalg",)},
        {"min_words": 20, "max_words": 10},
        {"test_fraction": 1.0},
        {"max_per_package": 0},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        docstrings.Options.model_validate(options)


def paired(within: str) -> dict[str, tuple[str, int]]:
    """Return second passage -> package of the first, and label."""
    options = {"packages": ("numpy", "scipy", "pandas"), "max_per_package": 60, "pairs": True, "pairs_within": within}
    splits = load(**options)
    rows = concatenate_datasets([splits.train, splits.test])
    assert splits.label_names == ("different", "same")
    assert len({row["text"] for row in rows}) == len({row["text2"] for row in rows}) == len(rows) == 180
    return {row["text2"]: (row["client"].split(".")[0], row["label"]) for row in rows}


def test_pairs_exchange_within_a_package_or_across_all() -> None:
    package, everywhere = paired("package"), paired("all")

    assert package.keys() == everywhere.keys()
    assert Counter(label for _, label in package.values()) == Counter(label for _, label in everywhere.values())
    assert sum(label for _, label in package.values()) == 90
    crossed = sum(package[second][0] != everywhere[second][0] for second in package)
    assert 30 < crossed < 90  # two in three of the exchanged


def test_where_pairs_exchange_is_refused_where_there_are_none() -> None:
    with pytest.raises(ValidationError, match=r"pairs_within = 'all': has no effect without pairs"):
        docstrings.Options.model_validate({"pairs_within": "all"})
