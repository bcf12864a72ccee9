"""How many worker processes a machine gets, on machines that are made up."""

from pathlib import Path
from typing import Any

import pytest

from fedpeft.engines import sizing
from fedpeft.engines.sizing import num_workers
from fedpeft.errors import UnsupportedError
from tests.conftest import tiny


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a way to say what the machine has: cores, free and own memory in kB."""
    real = sizing.kilobytes

    def have(*, cores: int, free: int, own: int) -> None:
        (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {free} kB\n")
        (tmp_path / "status").write_text(f"Name:\tpython\nVmRSS:\t {own} kB\n")
        monkeypatch.setattr(sizing, "_cores", lambda: cores)
        monkeypatch.setattr(sizing, "kilobytes", lambda file, key: real(tmp_path / file.name, key))

    return have


@pytest.mark.parametrize(
    ("cores", "free", "own", "threads", "expected"),
    [
        (16, 10_000_000, 500_000, 1, 16),
        (16, 10_000_000, 500_000, 4, 4),
        (16, 10_000_000, 500_000, 32, 1),
        (16, 10_000_000, 500_000, "auto", 1),
        (16, 1_999_999, 500_000, 1, 3),
        (16, 100_000, 500_000, 1, 1),
        (64, 90_000_000, 500_000, 1, 20),
    ],
)
def test_auto_is_bounded_by_cores_memory_and_clients(
    machine: Any, cores: int, free: int, own: int, threads: Any, expected: int
) -> None:
    machine(cores=cores, free=free, own=own)
    experiment = tiny(
        simulation={"workers": "auto"}, compute={"num_threads": threads}, rounds={"clients_per_round": 20}
    )
    assert num_workers(experiment, num_clients=100) == expected


def test_a_number_is_taken_as_it_is_but_for_workers_without_work() -> None:
    experiment = tiny(simulation={"workers": 7}, rounds={"clients_per_round": 20})
    assert num_workers(experiment, num_clients=100) == 7
    assert num_workers(tiny(simulation={"workers": 7}), num_clients=3) == 3


def test_a_poisson_cohort_may_be_everybody() -> None:
    rounds = {"clients_per_round": 2, "sampling": "poisson"}
    assert num_workers(tiny(simulation={"workers": 7}, rounds=rounds), num_clients=100) == 7


def test_a_gpu_is_not_shared() -> None:
    compute = {"device": "cuda:1"}
    assert num_workers(tiny(compute=compute, simulation={"workers": "auto"}), num_clients=3) == 1
    with pytest.raises(UnsupportedError, match=r"simulation.workers = 2 with compute.device = 'cuda:1'"):
        num_workers(tiny(compute=compute, simulation={"workers": 2}), num_clients=3)


def test_a_system_that_does_not_tell_gets_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sizing, "_cores", lambda: 8)
    monkeypatch.setattr(sizing, "Path", lambda name: tmp_path / "nothing")
    assert num_workers(tiny(simulation={"workers": "auto"}), num_clients=100) == 1
