"""The same apps under Flower's simulation runtime: by our own command and by a plain ``flwr run``, to the same bits."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedpeft import server
from fedpeft.config import Experiment
from fedpeft.engines import flower, inline
from fedpeft.engines.processes import started_under
from fedpeft.report.record import RoundRecord
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.watch import Watcher
from tests.conftest import needed, tiny
from tests.e2e.test_inline import digest, lines
from tests.e2e.test_resume import StoppedError, stop_at
from tests.e2e.test_sparse_downlink import BOTH

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MARK = "FEDPEFT_TEST"


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, its name short for Ray's sake; no folder and no process of ours may be left."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv(MARK, folder.name)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [(Path("/proc") / str(pid) / "cmdline").read_text() for pid, _ in started_under(MARK, folder.name)] == []
    assert list(folder.glob("fedpeft-*")) == []
    shutil.rmtree(folder)


class Seen(Watcher):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        self.first_round = 0
        self.rounds: list[RoundRecord] = []
        self.summary: dict[str, Any] = {}

    def started(self, experiment: Experiment, **figures: Any) -> None:
        self.first_round = figures["first_round"]

    def round_finished(self, record: RoundRecord) -> None:
        self.rounds.append(record)

    def finished(self, summary: Any) -> None:
        self.summary = dict(summary)


def letters(out: Path, **output: str) -> Experiment:
    """Return an experiment on relative paths whose third client holds too little and fails in every round."""
    return tiny(
        out,
        model={"name": "tiny", "architecture": "bert", "hidden_size": 16, "num_layers": 1, "dropout": 0.1},
        data={
            "name": "table",
            "path": "t/train.csv",
            "test_path": "t/test.csv",
            "text": "t",
            "label": "l",
            "client": "c",
        },
        partition={"name": "natural"},
        task={"name": "sequence_classification", "max_length": 16},
        evaluate={"on_clients": True},
        rounds={"num_rounds": 2},
        compute={"num_threads": "auto"},
        output={"directory": str(out), **output},
    )


def write_letters(folder: Path) -> None:
    rows = [f"{word} {number},{word},{'ab'[number % 2]}" for number in range(12) for word in ("up", "down")]
    folder.mkdir()
    (folder / "train.csv").write_text("\n".join(["t,l,c", *rows, "up again,up,c"]))
    (folder / "test.csv").write_text("\n".join(["t,l,c", *rows[:8]]))


def spring_a_trap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put other apps of the same name where Python and Ray look for modules."""
    for side in ("server", "client"):
        (folder / side).mkdir(parents=True)
        for name in ("__init__.py", "app.py"):
            (folder / side / name).write_text(f"raise RuntimeError('not this {side}')")
    given = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", *([given] if given else [])]))


@pytest.mark.runtime
def test_flower_goes_on_where_one_process_stopped_and_comes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    """Every client computes its bits in a worker process, one of them fails, and the paths are the caller's."""
    monkeypatch.chdir(tmp_path)
    write_letters(tmp_path / "t")
    spring_a_trap(tmp_path, monkeypatch)
    inline.simulate(letters(tmp_path / "a"))
    with monkeypatch.context() as patch:
        stop_at(patch, server, "run_round", 2, before=True)
        with pytest.raises(StoppedError):
            inline.simulate(letters(tmp_path / "b"))
    seen = Seen()
    summary = flower.simulate(letters(tmp_path / "b", if_exists="resume"), watcher=seen)
    assert digest(tmp_path / "b") == digest(tmp_path / "a") == summary["adapter_digest"]
    assert lines(tmp_path / "b") == lines(tmp_path / "a")
    assert [(record.round, record.failures[0].client) for record in seen.rounds] == [(2, 2)]
    assert "client 2 holds 1 example(s)" in seen.rounds[0].failures[0].reason
    assert (seen.first_round, seen.summary) == (2, summary)


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("strategy", "changes"), [("fedsa_lora", {}), ("fedavg", BOTH)], ids=["fedsa_lora", "sparse_both_ways"]
)
def test_what_clients_keep_stays_with_their_nodes(
    tmp_path: Path, scratch: Path, strategy: str, changes: dict[str, Any]
) -> None:
    """Flower hands each node's record from one worker process to the next: the same bits, evaluated too."""
    rounds = {"clients_per_round": 2, "num_rounds": 3}
    for name, engine in (("a", inline), ("b", flower)):
        engine.simulate(tiny(tmp_path / name, **needed(strategy, rounds=rounds, **changes)))

    assert digest(tmp_path / "b") == digest(tmp_path / "a")
    assert lines(tmp_path / "b") == lines(tmp_path / "a")
    assert not (tmp_path / "b" / "clients").exists()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the repository as far as Flower looks at it, with things beside that must not travel."""
    folder = tmp_path / "fedpeft"
    folder.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("server", "client", "simulations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for stray in (
        "fedpeft/__init__.py",
        "runs/old/config.toml",
        "docs/design.md",
        "secrets/key.json",
        "client/notes.md",
    ):
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).write_text("")
    return folder


def test_only_the_thin_apps_and_the_experiments_travel(clone: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / "flwr", "build", "--app", clone], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    (fab,) = tmp_path.glob("*.fab")
    shutil.unpack_archive(fab, tmp_path / "fab", format="zip")
    found = {path.relative_to(tmp_path / "fab").as_posix() for path in (tmp_path / "fab").rglob("*") if path.is_file()}
    experiments = {f"simulations/{path.name}" for path in (ROOT / "simulations").glob("*.toml")}
    apps = {f"{side}/{name}.py" for side in ("server", "client") for name in ("__init__", "app")}
    assert found == {"pyproject.toml", "LICENSE", "README.md", ".info/CONTENT", *apps, *experiments}, done.stdout


@pytest.mark.runtime
def test_plain_flwr_run_in_a_clone(clone: Path, tmp_path: Path, scratch: Path) -> None:
    """What the README tells a user of Flower to type; only the port is another one.

    Ray's workers look for modules in the SuperLink's working directory first, so a library there must be the real one.
    """
    shutil.rmtree(clone / "fedpeft")
    (clone / "fedpeft").symlink_to(ROOT / "fedpeft")
    (clone / "simulations" / "tiny.toml").write_text(tiny().to_toml())
    inline.simulate(tiny(tmp_path / "a", rounds={"num_rounds": 2}))
    environment = {**os.environ, "FLWR_HOME": str(tmp_path / "home"), "RAY_TMPDIR": str(scratch / "ray")}
    override = f"rounds.num_rounds=2 output.directory={tmp_path / 'b'}"
    config = f"""experiment="tiny.toml" override="{override}\""""
    with superlink(clone, environment):
        nodes = "num-supernodes=3 client-resources-num-cpus=1"
        command = ["flwr", "run", ".", "--stream", "--federation-config", nodes, "--run-config", config]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
    assert f"run directory: {tmp_path / 'b'}" in done.stdout, done.stdout + done.stderr
    assert "round 2/2" in done.stdout, done.stdout
    assert digest(tmp_path / "b") == digest(tmp_path / "a")
    assert lines(tmp_path / "b") == lines(tmp_path / "a")


@contextmanager
def superlink(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Start a SuperLink as a user would, where ``flwr run`` looks for it, and stop it as Ctrl-C does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] = port
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    flags = ["--insecure", "--simulation", "--disable-runtime-dependency-installation", "--host", "127.0.0.1"]
    command = ["flower-superlink", *flags, "--port", port]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        deadline = time.monotonic() + 30
        while started_under(MARK, environment[MARK]) and time.monotonic() < deadline:
            time.sleep(0.2)


def wait_for(port: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the SuperLink did not come up")


@pytest.mark.runtime
def test_an_error_on_the_server_is_one_message_and_exit_code_1(tmp_path: Path, scratch: Path) -> None:
    """All clients diverge; the command says so as it would without Flower, and nothing of Flower's or Ray's."""
    experiment = tiny(
        tmp_path / "run", train={"optimizer": "sgd", "learning_rate": 1e30}, compute={"num_threads": "auto"}
    )
    file = tmp_path / "experiment.toml"
    file.write_text(experiment.to_toml())
    command = [sys.executable, "-m", "fedpeft", "simulate", str(file), "--engine", "flower"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    first, *reasons = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert first.startswith("error: round 1: 0 client(s) replied, rounds.min_clients = 1")
    assert [line.split(":")[0] for line in reasons] == ["  client 0", "  client 1", "  client 2"]
    assert all("training diverged" in line for line in reasons)
    assert "round 0/3" in done.stdout
    assert [record.round for record in RunDirectory(tmp_path / "run").records()] == [0]
