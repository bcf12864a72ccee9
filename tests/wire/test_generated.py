"""The committed modules are what proto/ gives."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="grpc_tools is not installed: pip install grpcio-tools"
)


def check(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the generator's check on a checkout."""
    command = [sys.executable, str(root / "proto" / "generate.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_generated_code_is_up_to_date() -> None:
    done = check(ROOT)

    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_a_change_to_a_proto_file_names_the_files_it_makes_stale(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    shutil.copytree(ROOT / "fedpeft/wire/pb", tmp_path / "fedpeft/wire/pb")
    source = tmp_path / "proto/fedpeft/v1/messages.proto"
    source.write_text(source.read_text() + "message Extra {}\n")
    (tmp_path / "fedpeft/wire/pb/v1/old_pb2.py").write_text("")

    done = check(tmp_path)

    assert done.returncode == 1
    for name in ("messages_pb2.py:", "messages_pb2.pyi:", "old_pb2.py:"):
        assert f"fedpeft/wire/pb/v1/{name}" in done.stdout
