"""The command that starts a trainer: what it refuses before anything is made or loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.cli import main
from tests.conftest import tiny


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedpeft", "trainer", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_what_it_is_told_is_checked_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "e.toml"
    file.write_text(tiny().to_toml())
    state, socket = tmp_path / "state", "unix:///run/x.sock"
    for options, said in (
        (("--listen", socket, "--override", "seed=4"), "--override changes the file of --experiment"),
        (("--listen", socket, "--experiment", file, "--override", "train.batch=4"), "train.batch"),
        (("--listen", socket, "--experiment", tmp_path / "none.toml"), "none.toml: cannot be read"),
        (("--listen", socket, "--pins-key", file), "--pins-key says who signed the manifest of --pins"),
        (("--listen", socket, "--pins", file), "e.toml: base_hash"),
        (("--listen", "0.0.0.0:9000", "--experiment", file), "never reached over a network"),
    ):
        assert run(monkeypatch, "--state", state, *options) == 2
        assert said in capsys.readouterr().err
    assert not state.exists()


def test_the_command_line_starts_without_torch_or_grpc() -> None:
    code = "import sys, fedpeft.cli; print(sorted({'torch', 'grpc', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
