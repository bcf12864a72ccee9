"""The two Flower apps as ``flwr run`` loads them: thin files in ``server/`` and ``client/`` call these."""

import logging
import shlex
from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedpeft import config
from fedpeft.adapters.plan import Plan
from fedpeft.client import Node, client_app
from fedpeft.config import Experiment
from fedpeft.engines.start import ready
from fedpeft.errors import ConfigError
from fedpeft.report.progress import plain_watcher
from fedpeft.server import serve
from fedpeft.training.workbench import Workbench, assemble

__all__ = ["flower_client_app", "flower_server_app"]

_LOG = logging.getLogger("flwr.fedpeft")
"""Below Flower's own logger, so that it comes out where Flower's lines do, and so in ``flwr log``."""


def flower_server_app(folder: Path) -> ServerApp:
    """Return the server app; run-config key ``experiment`` names a file in the folder, ``override`` changes it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        experiment = _experiment(folder, context)
        bench, run, resume = ready(experiment)
        _LOG.info("run directory: %s", run.path.resolve())
        serve(grid, bench, run, resume=resume, watcher=plain_watcher())

    return app


def flower_client_app(folder: Path) -> ClientApp:
    """Return the client app; each process keeps the parts of the last experiment it worked for."""

    def workbench(context: Context, plan: bytes) -> Workbench:
        return _workbench(folder, *_keys(context), plan)

    return client_app(Node(experiment=lambda context: _experiment(folder, context), workbench=workbench))


def _experiment(folder: Path, context: Context) -> Experiment:
    return _load(folder, *_keys(context))


def _load(folder: Path, name: str, override: str) -> Experiment:
    try:
        overrides = shlex.split(override)
    except ValueError as error:
        raise ConfigError(f"run-config override = {override!r}: {error}; words are split as a shell would") from error
    return config.load(folder / name, overrides)


def _keys(context: Context) -> tuple[str, str]:
    """Return the two run-config keys: the experiment's file and the overrides, split as a shell would."""
    return str(context.run_config["experiment"]), str(context.run_config.get("override", ""))


@lru_cache(maxsize=1)
def _workbench(folder: Path, name: str, override: str, plan: bytes) -> Workbench:
    """Build the parts once a process: Flower calls the app anew for every message."""
    return assemble(_load(folder, name, override), Plan.from_bytes(plan))
