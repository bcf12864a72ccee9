"""Whatever a process of ours started ends with it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedpeft.engines import processes
from fedpeft.engines.processes import end, ended_by_sigterm, started_under

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 1:
    environment = {} if sys.argv[1] == "bare" else None
    subprocess.Popen([sys.executable, "-c", sys.argv[-1]], env=environment, start_new_session=True)
print("up", flush=True)
time.sleep(600)
"""


def tree(mark: str, kind: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", STUBBORN, kind, STUBBORN]
    environment = {**os.environ, "FEDPEFT_TEST": mark}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert (process.stdout.readline(), process.stdout.readline()) == (b"up\n", b"up\n")
    return process


@pytest.mark.parametrize("kind", ["bare", "marked"])
def test_a_child_in_another_session_that_will_not_listen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_POLITE_SECONDS", 0.3)
    mark = f"{os.getpid()}-{kind}"
    with tree(mark, kind) as process:
        before = started_under("FEDPEFT_TEST", mark)
        assert len(before) == 2
        end(process, name="FEDPEFT_TEST", value=mark)
        assert process.returncode == -signal.SIGKILL
    assert processes._living(before) == set()


def test_an_orphan_is_found_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_POLITE_SECONDS", 0.3)
    mark = f"{os.getpid()}-orphan"
    with tree(mark, "marked") as process:
        process.kill()
        process.wait()
        (orphan,) = started_under("FEDPEFT_TEST", mark)
        end(process, name="FEDPEFT_TEST", value=mark)
    assert processes._living({orphan}) == set()


def test_sigterm_unwinds_and_ctrl_c_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_POLITE_SECONDS", 0.5)
    before = signal.getsignal(signal.SIGTERM)
    with tree(f"{os.getpid()}-term", "marked") as process:
        with pytest.raises(SystemExit) as caught, ended_by_sigterm():
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is before
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        end(process, name="FEDPEFT_TEST", value=f"{os.getpid()}-term")
    assert started_under("FEDPEFT_TEST", f"{os.getpid()}-term") == set()
