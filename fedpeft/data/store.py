"""Data that was read and dealt, as files that other processes of this machine map instead of copying."""

import json
from pathlib import Path

import numpy
from datasets import Dataset

from fedpeft.data.base import Splits
from fedpeft.data.checks import quiet
from fedpeft.data.shares import Shares

__all__ = ["read_store", "write_store"]

_ORDER, _BOUNDS = "order.npy", "bounds.npy"


def write_store(folder: Path, splits: Splits, shares: Shares | None) -> None:
    """Write both into a new folder, no shares where clients are made when drawn; nothing is read or dealt again."""
    folder.mkdir()
    with quiet():
        splits.train.save_to_disk(str(folder / "train"))
        splits.test.save_to_disk(str(folder / "test"))
    if shares is not None:
        numpy.save(folder / _ORDER, shares.order)
        numpy.save(folder / _BOUNDS, shares.bounds)
    (folder / "labels.json").write_text(json.dumps(splits.label_names), encoding="utf-8")


def read_store(folder: Path) -> tuple[Splits, Shares | None]:
    """Return what ``write_store`` was given, mapped into memory."""
    train, test = (Dataset.load_from_disk(str(folder / name)) for name in ("train", "test"))
    labels = tuple(json.loads((folder / "labels.json").read_text(encoding="utf-8")))
    splits = Splits(train=train, test=test, label_names=labels)
    if not (folder / _ORDER).exists():
        return splits, None
    order, bounds = (numpy.load(folder / name, mmap_mode="r") for name in (_ORDER, _BOUNDS))
    return splits, Shares(train=train, order=order, bounds=bounds)
