"""A crash at any moment leaves the old file or the new one, whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpeft import files
from fedpeft.files import commit_folder, write_atomic


class CrashError(Exception):
    """The power goes."""


def crashing(function: Callable[..., Any], *, at: int) -> Callable[..., Any]:
    """Return a function that fails on its so-manieth call, before doing anything."""
    calls = iter(range(1_000_000))

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise CrashError
        return function(*args, **kwargs)

    return wrapper


def folder(path: Path, text: str) -> Path:
    """Write a folder of two files, one nested."""
    (path / "inner").mkdir(parents=True)
    (path / "a.txt").write_text(text)
    (path / "inner" / "b.txt").write_text(text)
    return path


def contents(path: Path) -> set[str]:
    """Return the texts in a folder of two files."""
    return {(path / "a.txt").read_text(), (path / "inner" / "b.txt").read_text()}


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    for data in ("text, ü\n", b"\x00\xff", ""):
        write_atomic(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["fsync", "open", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_atomic(tmp_path / "file", "old")
    owner: Any = os if name == "fsync" else Path
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crashing(vars(owner)[name], at=0))
        with pytest.raises(CrashError):
            write_atomic(tmp_path / "file", "new")

    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_crash_after_the_rename_leaves_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", crashing(os.fsync, at=1))
    with pytest.raises(CrashError):
        write_atomic(tmp_path / "file", "new")

    assert (tmp_path / "file").read_text() == "new"


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for text in ("old", "new"):
        commit_folder(folder(tmp_path / "partial", text), final)
        assert contents(final) == {text}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("at", range(3))
def test_a_crash_at_any_rename_or_removal_leaves_whole_folders_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    final = tmp_path / "final"
    commit_folder(folder(tmp_path / "partial", "old"), final)
    folder(tmp_path / "partial", "new")
    steps = iter(range(10))
    with monkeypatch.context() as patch:
        for owner, name in ((Path, "rename"), (shutil, "rmtree")):
            patch.setattr(owner, name, shared(vars(owner)[name], steps, at=at + 1))
        with pytest.raises(CrashError):
            commit_folder(tmp_path / "partial", final)

    assert all(len(contents(path)) == 1 for path in tmp_path.iterdir())
    assert {"old"} in [contents(path) for path in tmp_path.iterdir()] or contents(final) == {"new"}
    shutil.rmtree(tmp_path / "partial", ignore_errors=True)
    commit_folder(folder(tmp_path / "partial", "newest"), final)
    assert contents(final) == {"newest"}


def shared(function: Callable[..., Any], steps: Any, *, at: int) -> Callable[..., Any]:
    """Like crashing, but counting the calls of several functions together."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if next(steps) == at:
            raise CrashError
        return function(*args, **kwargs)

    return wrapper


def test_where_relative_paths_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv(files.ROOT_VARIABLE, raising=False)
    assert files.rooted("data/train.csv") == Path("data/train.csv")
    monkeypatch.setenv(files.ROOT_VARIABLE, str(tmp_path))
    assert files.rooted("data/train.csv") == tmp_path / "data" / "train.csv"
    assert files.rooted("/data/train.csv") == Path("/data/train.csv")
    assert files.rooted("~/train.csv") == Path("/home/somebody/train.csv")
