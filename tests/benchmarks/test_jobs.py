"""What a benchmark keeps: a run that is in the log is not done again, in any clone."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import aggregation, jobs
from benchmarks.aggregation_jobs import SWEPT, SWEPT_RATES, SWEPT_STEPS, Job


def doubled(job: int) -> dict[str, Any]:
    return {"twice": 2 * job}


def never(job: int) -> dict[str, Any]:
    raise AssertionError(job)


def test_what_is_in_the_log_is_not_run_again_and_order_is_that_of_the_jobs(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"

    first = jobs.run_jobs(doubled, {"b": 2, "a": 1}, workers=1, log=log, tasks_per_process=2)
    again = jobs.run_jobs(never, {"a": 1, "b": 2}, workers=1, log=log)

    assert first == [{"twice": 4}, {"twice": 2}]
    assert again == [{"twice": 2}, {"twice": 4}]


def test_a_last_line_that_a_crash_tore_is_no_result_and_is_cut_off(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    jobs.keep(log, "a", {"x": 1})
    jobs.keep(log, "b", {"x": 2})
    log.write_text(log.read_text()[:-5])

    found = jobs.read_log(log, ["a", "b"])
    jobs.keep(log, "b", {"x": 3})

    assert found == {"a": {"x": 1}}
    assert jobs.read_log(log, ["b", "a"]) == {"b": {"x": 3}, "a": {"x": 1}}


def test_a_key_knows_every_value_but_not_where_data_and_repository_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(rate: float) -> str:
        given = {"data": {"path": str(jobs.DATA / "x.parquet")}, "base": str(jobs.ROOT / "runs"), "rate": rate}
        return jobs.key_of(given, "clinc150", 3)

    here = key(0.1)
    monkeypatch.setattr(jobs, "DATA", Path("/elsewhere/data"))
    monkeypatch.setattr(jobs, "ROOT", Path("/elsewhere/repository"))

    assert key(0.1) == here
    assert key(0.2) != here
    assert here.startswith("clinc150 3 ")


def test_the_committed_runs_of_clinc150_and_the_sweep_are_found_under_their_keys() -> None:
    swept = [Job("clinc150", name, rate, 0, steps) for name in SWEPT for steps in SWEPT_STEPS for rate in SWEPT_RATES]

    assert len(aggregation.logged(swept)) == len(swept)
    assert aggregation.logged([Job("clinc150", "fedavg", 0.3, seed) for seed in (0, 1, 2)])[0]["accuracy"] > 0.7
