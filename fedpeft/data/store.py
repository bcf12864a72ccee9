"""Data that was read and dealt, as files that other processes of this machine map instead of copying."""

import json
from itertools import pairwise
from pathlib import Path

import numpy
from datasets import Dataset

from fedpeft.data.base import Splits
from fedpeft.data.checks import quiet
from fedpeft.data.shares import Shares

__all__ = ["read_store", "write_store"]


def write_store(folder: Path, splits: Splits, shares: Shares) -> None:
    """Write both into a new folder; nothing is read or dealt again from them."""
    folder.mkdir()
    with quiet():
        splits.train.save_to_disk(str(folder / "train"))
        splits.test.save_to_disk(str(folder / "test"))
    numpy.save(folder / "rows.npy", numpy.concatenate(shares.rows))
    numpy.save(folder / "bounds.npy", numpy.cumsum([0, *shares.sizes()], dtype=numpy.int64))
    (folder / "labels.json").write_text(json.dumps(splits.label_names), encoding="utf-8")


def read_store(folder: Path) -> tuple[Splits, Shares]:
    """Return what ``write_store`` was given, mapped into memory."""
    train, test = (Dataset.load_from_disk(str(folder / name)) for name in ("train", "test"))
    labels = tuple(json.loads((folder / "labels.json").read_text(encoding="utf-8")))
    rows, bounds = numpy.load(folder / "rows.npy", mmap_mode="r"), numpy.load(folder / "bounds.npy").tolist()
    dealt = tuple(rows[start:end] for start, end in pairwise(bounds))
    return Splits(train=train, test=test, label_names=labels), Shares(train=train, rows=dealt)
