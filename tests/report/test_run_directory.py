"""A run's folder is begun once, appended to durably, cut back to a checkpoint, and continued only as it began."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.config import Experiment
from fedpeft.errors import InputError, ResumeError
from fedpeft.report.record import RoundRecord
from fedpeft.report.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path, experiment: Experiment) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs" / "tiny", experiment)


@pytest.fixture
def filled(run: RunDirectory, records: list[RoundRecord]) -> RunDirectory:
    for record in records:
        run.append(record)
    return run


def _lines(run: RunDirectory) -> Path:
    return run.path / "rounds.jsonl"


def test_the_experiment_survives_the_file_with_its_hash(
    tmp_path: Path, make_experiment: Callable[..., Experiment]
) -> None:
    part = {"name": "third_party.part", "rate": 1e-3, "nested": {"a": 1}}
    experiment = make_experiment(adapter=part, train={"local_steps": 3, "learning_rate": 2})
    run = RunDirectory.create(tmp_path / "run", experiment)
    assert RunDirectory.open(run.path).experiment() == experiment
    assert run.experiment().hash == experiment.hash


def test_a_folder_in_use_is_refused_with_the_remedy_and_left_alone(
    filled: RunDirectory, experiment: Experiment
) -> None:
    before = _lines(filled).read_bytes()
    with pytest.raises(InputError, match="not empty; continue that run, overwrite it, or name another"):
        RunDirectory.create(filled.path, experiment)
    assert _lines(filled).read_bytes() == before


def test_an_empty_folder_and_one_with_a_torn_first_write_are_taken(tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.toml.123.partial").write_text("half")
    assert RunDirectory.create(tmp_path / "run", experiment).experiment() == experiment


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(filled: RunDirectory, experiment: Experiment) -> None:
    (filled.path / "notes.txt").write_text("mine")
    (filled.checkpoints / "round-3").mkdir(parents=True)
    run = RunDirectory.create(filled.path, experiment, overwrite=True)
    assert run.records() == ()
    assert sorted(path.name for path in run.path.iterdir()) == ["config.toml", "notes.txt"]


def test_overwrite_never_touches_a_folder_that_is_no_run(tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(InputError, match="something else than a run"):
        RunDirectory.create(tmp_path, experiment, overwrite=True)
    assert (tmp_path / "adapter").is_dir()


def test_a_path_that_cannot_be_a_folder_is_an_input_error(tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be made"):
            RunDirectory.create(path, experiment)


def test_opening_needs_a_whole_experiment(run: RunDirectory) -> None:
    (run.path / "config.toml").write_text("name = ")
    with pytest.raises(ResumeError, match="damaged"):
        RunDirectory.open(run.path)
    (run.path / "config.toml").unlink()
    with pytest.raises(ResumeError, match=r"no config\.toml"):
        RunDirectory.open(run.path)


def test_a_changed_experiment_is_refused_by_key_with_both_values(
    run: RunDirectory, make_experiment: Callable[..., Experiment]
) -> None:
    changed = make_experiment(train={"learning_rate": 0.5, "local_steps": 4})
    with pytest.raises(ResumeError) as caught:
        RunDirectory.resume(run.path, changed)
    assert "train.learning_rate = 0.5, the run began with 0.001" in str(caught.value)
    assert "train.local_steps = 4, the run began with 'unset'" in str(caught.value)
    assert "train.momentum" not in str(caught.value)


def test_where_output_goes_and_who_runs_it_may_change(
    run: RunDirectory, make_experiment: Callable[..., Experiment]
) -> None:
    same = make_experiment(output={"directory": str(run.path)}, simulation={"workers": 2})
    assert RunDirectory.resume(run.path, same) == run


def test_rounds_come_back_as_they_were_appended(filled: RunDirectory, records: list[RoundRecord]) -> None:
    assert filled.records() == tuple(records)


def test_a_torn_last_line_is_left_out_and_truncation_removes_it(
    filled: RunDirectory, records: list[RoundRecord]
) -> None:
    with _lines(filled).open("a") as file:
        file.write(records[-1].to_json()[:40])
    assert filled.records() == tuple(records)
    filled.truncate(3)
    assert _lines(filled).read_text().splitlines() == [record.to_json() for record in records]


def test_truncation_forgets_later_rounds_so_that_appending_goes_on(
    filled: RunDirectory, records: list[RoundRecord]
) -> None:
    filled.truncate(1)
    filled.append(records[2])
    assert filled.records() == tuple(records[:3])


def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_cut(filled: RunDirectory) -> None:
    lines = _lines(filled).read_text().splitlines()
    _lines(filled).write_text("\n".join([lines[0], lines[1][:20], *lines[2:], ""]))
    before = _lines(filled).read_bytes()
    with pytest.raises(ResumeError, match=r"rounds\.jsonl:2: not a round record"):
        filled.truncate(3)
    assert _lines(filled).read_bytes() == before


def test_summary_and_partition_survive_the_file(run: RunDirectory) -> None:
    assert (run.summary(), run.partition()) == ({}, [])
    run.write_summary({"name": "tiny", "best": None})
    run.write_partition([{"client": 0, "num_examples": 3, "labels": {"pos": 3}}])
    assert run.summary() == {"name": "tiny", "best": None}
    assert run.partition() == [{"client": 0, "num_examples": 3, "labels": {"pos": 3}}]
    (run.path / "summary.json").write_text("{")
    with pytest.raises(ResumeError, match="damaged"):
        run.summary()
