"""A SuperLink that cannot start, or that dies, is one clear error."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from fedpeft.engines import superlink
from fedpeft.engines.processes import started_under
from fedpeft.engines.superlink import started
from fedpeft.errors import RunError
from fedpeft.files import ROOT_VARIABLE


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(superlink, "free_port", lambda: int(other.getsockname()[1]))
        with (
            pytest.raises(RunError, match=r"the SuperLink ended with exit code \d+[\s\S]*address already in use"),
            started(tmp_path, modules=tmp_path),
        ):
            pytest.fail("it came up")


def test_one_that_dies(tmp_path: Path) -> None:
    with started(tmp_path, modules=tmp_path) as running:
        home = running.environment["FLWR_HOME"]
        assert started_under("FLWR_HOME", home)
        for pid, _ in started_under("FLWR_HOME", home):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        with pytest.raises(RunError, match=r"the SuperLink ended with exit code -9; the end of its log:\n[\s\S]*start"):
            running.run(tmp_path, federation_config="num-supernodes=1")
    assert started_under("FLWR_HOME", home) == set()


def test_a_bundle_that_flower_refuses(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    with (
        started(tmp_path, modules=tmp_path) as running,
        pytest.raises(RunError, match=r"^flwr run failed: Invalid Flower App[\s\S]*tool.flwr.app"),
    ):
        running.run(tmp_path / "bundle", federation_config="num-supernodes=1")


def test_what_its_processes_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}lib")
    environment = superlink._environment(tmp_path / "a", tmp_path / "bundle", 1234)
    paths = [str(tmp_path / "bundle"), str(tmp_path), str(tmp_path / "lib")]
    assert environment["PYTHONPATH"].split(os.pathsep) == paths
    assert environment[ROOT_VARIABLE] == str(tmp_path)
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv(ROOT_VARIABLE, "data")
    environment = superlink._environment(tmp_path / "b", tmp_path / "bundle", 1234)
    assert environment["PYTHONPATH"] == str(tmp_path / "bundle")
    assert environment[ROOT_VARIABLE] == str(tmp_path / "data")
