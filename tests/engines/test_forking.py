"""When the process that workers are forked from begins: before anything slow, and only where several are wanted."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedpeft.cli
from fedpeft.config import Compute, Simulation, glance
from fedpeft.engines import sizing
from fedpeft.errors import ConfigError


@pytest.mark.parametrize(
    ("workers", "threads", "device", "expected"),
    [
        (1, 1, "cpu", False),
        (2, 1, "cpu", True),
        (2, 4, "cpu", True),
        ("auto", 1, "cpu", True),
        ("auto", 4, "cpu", False),
        ("auto", "auto", "cpu", False),
        (2, 1, "cuda", False),
    ],
)
def test_several_workers_are_likely(
    workers: Any, threads: Any, device: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "_cores", lambda: 4)
    tables = Simulation(workers=workers), Compute(num_threads=threads, device=device)
    assert sizing.likely_several(*tables) is expected


@pytest.mark.parametrize(("engine", "begun"), [("inline", [3]), ("flower", [])])
def test_it_begins_before_the_experiment_is_read(
    tmp_path: Path, engine: str, begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "it.toml", []
    file.write_text("[simulation]\nworkers = 2\n")

    def load(*_: Any) -> Any:
        assert seen == begun
        raise ConfigError("that is all")

    monkeypatch.setattr(fedpeft.cli, "begin", lambda simulation, _: seen.append(simulation.workers))
    monkeypatch.setattr(fedpeft.cli.config, "load", load)
    done = CliRunner().invoke(
        fedpeft.cli.app, ["simulate", str(file), "--engine", engine, "--set", "simulation.workers=3"]
    )
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == "that is all"


@pytest.mark.parametrize(
    "text", ["not TOML", "[simulation]\nworkers = 0", "[compute]\ndevice = 'tpu'", "simulation = 3", None]
)
def test_what_is_wrong_is_left_to_the_reader(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "it.toml"
    if text is not None:
        file.write_text(text)
    assert glance(file) is None


def test_a_glance_imports_no_part(tmp_path: Path) -> None:
    file = tmp_path / "it.toml"
    file.write_text("[adapter]\nname = 'nowhere.to.be:found'\n")
    assert glance(file, ["compute.num_threads=3"]) == (Simulation(), Compute(num_threads=3))
