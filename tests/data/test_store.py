"""Dealt data on the disk and back."""

from pathlib import Path

import numpy
import torch
from datasets import Array3D, ClassLabel, Dataset, Features, Value

from fedpeft.data.base import Splits
from fedpeft.data.shares import Shares
from fedpeft.data.store import read_store, write_store


def test_everything_comes_back_and_selections_are_kept(tmp_path: Path) -> None:
    features = Features(
        {"image": Array3D((1, 2, 2), "float32"), "label": ClassLabel(names=["a", "b"]), "t": Value("string")}
    )
    rows = {"image": torch.randn(6, 1, 2, 2).numpy(), "label": [0, 1, 0, 1, 1, 0], "t": list("abcdef")}
    data = Dataset.from_dict(rows, features=features)
    train, test = data.select([5, 3, 1, 0]), data.select([4, 2])
    splits = Splits(train=train, test=test, label_names=("a", "b"))
    shares = Shares.of(train, [numpy.array([3, 0]), numpy.array([1])])

    write_store(tmp_path / "s", splits, shares)
    splits_back, shares_back = read_store(tmp_path / "s")

    assert splits_back.label_names == ("a", "b")
    for old, new in ((train, splits_back.train), (test, splits_back.test)):
        assert new.features == old.features
        assert new.to_dict() == old.to_dict()
    assert shares_back is not None
    assert [shares_back.rows(client).tolist() for client in range(2)] == [[3, 0], [1]]
    assert shares_back.num_undealt == 1
    assert shares_back.examples(0)["t"][:] == ["a", "f"]
    assert shares_back.summary(("a", "b")) == shares.summary(("a", "b"))
