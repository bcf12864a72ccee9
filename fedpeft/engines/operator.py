"""The ``flwr`` command pointed at one SuperLink: submit a bundle, ask where it stands, read what it logged."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fedpeft.errors import RunError

__all__ = ["CONNECTION", "Operator", "Status", "environment", "inherited", "script"]

CONNECTION = "fedpeft"
"""Name of the connection in the operator's own Flower configuration."""
_CALL_SECONDS = 180.0


@final
@dataclass(frozen=True)
class Status:
    """Where a run stands."""

    text: str
    """For example ``running`` or ``finished:completed``."""
    details: str
    """Why it failed; empty where Flower says nothing."""


@final
@dataclass(frozen=True, kw_only=True)
class Operator:
    """Who may submit runs."""

    environment: dict[str, str]
    """Of the command; its FLWR_HOME holds the connection."""
    folder: Path
    """The command's working directory."""
    require_running: Callable[[], None] = lambda: None
    """Refuse to go on where the SuperLink is known to have ended."""

    def run(self, bundle: Path, *, federation_config: str | None = None) -> int:
        """Submit a bundle and return the run's number."""
        options = ["--federation-config", federation_config] if federation_config is not None else []
        return int(self.ask("run", str(bundle), CONNECTION, *options)["run-id"])

    def status(self, run: int) -> Status:
        """Return the run's status. This starts a process, and takes a second of its time."""
        row = self.ask("list", CONNECTION, "--run-id", str(run))["runs"][0]
        details = str(row.get("status-details") or "")
        return Status(str(row["status"]), "" if details == "N/A" else details)

    def output(self, run: int) -> str:
        """Return what the run's apps logged."""
        return self._call("log", str(run), CONNECTION, "--show").stdout

    def ask(self, *arguments: str) -> dict[str, Any]:
        """Call flwr and return its answer.

        Raises:
            RunError: it failed; says why.
        """
        done = self._call(*arguments, "--format", "json")
        start = done.stdout.find("{")
        try:
            answer = dict(json.loads(done.stdout[start:])) if start >= 0 else {}
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success"):
            self.require_running()
            said = str(answer.get("error-message") or done.stderr or done.stdout).strip()
            raise RunError(f"flwr {arguments[0]} failed: {said}")
        return answer

    def _call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        self.require_running()
        try:
            return subprocess.run(
                [script("flwr"), *arguments],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_CALL_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"flwr {arguments[0]} gave no answer within {_CALL_SECONDS:.0f} s") from error


def environment(home: Path, address: str, *, certificates: Path | None) -> dict[str, str]:
    """Return an operator's environment, and write its connection below ``home``; without TLS where none is given."""
    home.mkdir(parents=True, exist_ok=True)
    trust = "insecure = true" if certificates is None else f"root-certificates = {json.dumps(str(certificates))}"
    lines = ["[superlink]", f'default = "{CONNECTION}"', f"[superlink.{CONNECTION}]", f'address = "{address}"', trust]
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return inherited(home)


def inherited(home: Path) -> dict[str, str]:
    """Return the environment of an operator whose connection is there already."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def script(name: str) -> str:
    """Return the path of a command that is installed beside this Python."""
    return str(Path(sys.executable).parent / name)
