"""The two Flower apps as ``flwr run`` loads them: thin files in ``server/`` and ``client/`` call these.

What trains or aggregates is imported when it is first needed: a client app that has a trainer needs none of it.
"""

import logging
import os
import shlex
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.engines.watchdog import watched
from fedpeft.errors import ConfigError
from fedpeft.trainer.forward import forward
from fedpeft.wire.failure import failure, tells

if TYPE_CHECKING:
    from fedpeft.pinning.gate import Gate
    from fedpeft.privacy.own import OwnLedger
    from fedpeft.rounds.answered import Answered
    from fedpeft.training.workbench import Workbench
    from fedpeft.wire.signature import Keys, Signer

__all__ = [
    "ANSWERS_KEY",
    "KEYS_VARIABLE",
    "LEDGER_KEYS",
    "PIN_KEYS",
    "SIGNING_KEY",
    "TRAINER_KEY",
    "flower_client_app",
    "flower_server_app",
    "split_override",
]

_LOG = logging.getLogger("flwr.fedpeft")
"""Below Flower's own logger, so that it comes out where Flower's lines do, and so in ``flwr log``."""
TRAINER_KEY = "trainer"
"""In the node config: the address of the trainer that answers for this node."""
LEDGER_KEYS = ("privacy-state", "lifetime-epsilon", "lifetime-delta")
"""In the config of a node without a trainer: its own ledger's folder, and its budget over all experiments."""
SIGNING_KEY = "application-key"
"""In the config of a node without a trainer: the file of the key by which its client signs replies."""
ANSWERS_KEY = "answer-state"
"""The same: the folder where its client's answers are kept, so that none is made twice."""
KEYS_VARIABLE = "FEDPEFT_CLIENT_KEYS"
"""Environment variable of the server's executor: the folder of all clients' public keys; unset, nobody signs."""
PIN_KEYS = ("pins", "pins-key")
"""In the config of a node without a trainer: the manifest that its operator pinned, and whose signature that has."""


def flower_server_app(folder: Path) -> ServerApp:
    """Return the server app; run-config key ``experiment`` names a file in the folder, ``override`` changes it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        from fedpeft.engines.inflating import counting
        from fedpeft.engines.patient import PatientGrid
        from fedpeft.engines.start import ready
        from fedpeft.report.progress import plain_watcher
        from fedpeft.rounds.admission import largest_reply
        from fedpeft.rounds.fence import serving
        from fedpeft.server import serve

        experiment = _experiment(folder, context)
        bench, run, resume = ready(experiment)
        _LOG.info("run directory: %s", run.path.resolve())
        patient, keys = PatientGrid(grid, most=largest_reply(bench)), _keys_of_clients()
        with serving(run.path, experiment.output.fence), counting():
            serve(patient, bench, run, resume=resume, watcher=plain_watcher(), keys=keys, journaled=True)

    return app


def _keys_of_clients() -> "Keys | None":
    """Return the keys by which replies must be signed, where the deployment has some.

    Raises:
        InputError: the folder that it names holds none.
    """
    from fedpeft.wire.signature import read_keys

    if not (folder := os.environ.get(KEYS_VARIABLE)):
        return None
    keys = read_keys(Path(folder))
    _LOG.info("replies are taken that are signed by the keys of %d clients", len(keys.by_client))
    return keys


def flower_client_app(folder: Path) -> ClientApp:
    """Return the client app; it asks the trainer that the node config names, or trains in its own process.

    Then each process keeps the parts of the last experiment it worked for.
    """
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        try:
            with watched(message):
                return _answered(folder, message, context)
        except Exception as error:  # noqa: BLE001 - the boundary: Flower would tell the server its words
            return Message(failure(error, _LOG, who="the app", words=tells()), reply_to=message)

    for register in (app.query("join"), app.train(), app.evaluate()):
        register(answer)
    return app


def _answered(folder: Path, message: Message, context: Context) -> Message:
    """Ask the trainer that the node config names, or do what it would do."""
    trainer = context.node_config.get(TRAINER_KEY)
    if trainer is None:
        return _own_app(folder)(message, context)
    return forward(str(trainer), message, context, folder=folder)


@lru_cache(maxsize=1)
def _own_app(folder: Path) -> ClientApp:
    """Return the client app that trains in this process."""
    from fedpeft.client import Node, client_app

    def workbench(context: Context, plan: bytes) -> "Workbench":
        return _workbench(folder, *_keys(context), plan)

    def experiment(context: Context) -> Experiment:
        return _load(folder, *_keys(context), outside=_gate(context) is None)

    return client_app(
        Node(
            experiment=experiment,
            workbench=workbench,
            ledger=_ledger,
            gate=_gate,
            tells=tells(),
            signer=_signer,
            answered=_kept,
        )
    )


def _gate(context: Context) -> "Gate | None":
    """Return what this node's config pins."""
    pins, key = (context.node_config.get(name) for name in PIN_KEYS)
    if pins is None and key is not None:
        raise ConfigError("node config: pins-key without pins; name the manifest too")
    return _opened(str(pins), None if key is None else str(key)) if pins is not None else None


@lru_cache(maxsize=1)
def _opened(pins: str, key: str | None) -> "Gate | None":
    from fedpeft.pinning.gate import gate_at

    return gate_at(Path(pins), Path(key) if key is not None else None)


def _kept(context: Context) -> "Answered | None":
    """Return where the node's config has its client's answers kept.

    Raises:
        ConfigError: not an absolute path.
    """
    from fedpeft.rounds.answered import Answered

    folder = context.node_config.get(ANSWERS_KEY)
    if folder is None:
        return None
    if not Path(str(folder)).is_absolute():
        raise ConfigError(f"node config: {ANSWERS_KEY} = {folder!r}: expected an absolute path; answers must be found")
    return Answered(Path(str(folder)) / str(int(context.node_config["partition-id"])))


def _signer(context: Context) -> "Signer | None":
    """Return the key that the node's config names.

    Raises:
        InputError: it cannot be read.
    """
    from fedpeft.wire.signature import read_signer

    path = context.node_config.get(SIGNING_KEY)
    return read_signer(Path(str(path))) if path is not None else None


def _ledger(context: Context, experiment: Experiment) -> "OwnLedger | None":
    """Return the node's own ledger where its config has one; say it where a private experiment goes without.

    Raises:
        InputError: half a lifetime budget, or one without a folder.
    """
    from fedpeft.privacy.own import Lifetime, OwnLedger

    folder, epsilon, delta = (context.node_config.get(key) for key in LEDGER_KEYS)
    lifetime = Lifetime.of(_number(epsilon), _number(delta), where="node config: lifetime-epsilon, lifetime-delta")
    if (gate := _gate(context)) is not None:
        lifetime = gate.lifetime(lifetime)
    if folder is None and lifetime is not None:
        raise ConfigError("node config: a lifetime budget without privacy-state; name the folder of the ledger too")
    if folder is None:
        if experiment.privacy is not None:
            _LOG.warning(
                "no ledger of this node's own: what its data's privacy costs is counted by the server alone; set "
                "privacy-state in the node config, or run a trainer"
            )
        return None
    if not Path(str(folder)).is_absolute():
        raise ConfigError(
            f"node config: privacy-state = {folder!r}: expected an absolute path; the ledger must be found"
        )
    client = int(context.node_config["partition-id"])
    return OwnLedger(folder=Path(str(folder)), experiment=experiment.hash, client=client, lifetime=lifetime)


def _number(value: object) -> float | None:
    """Return what a node config says of a budget.

    Raises:
        ConfigError: no number.
    """
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ConfigError(f"node config: expected a number for a lifetime budget, got {value!r}")


def split_override(override: str) -> list[str]:
    """Split the run config's ``override`` as a shell would.

    Raises:
        ConfigError: it cannot be split.
    """
    try:
        return shlex.split(override)
    except ValueError as error:
        raise ConfigError(f"run-config override = {override!r}: {error}; words are split as a shell would") from error


def _experiment(folder: Path, context: Context) -> Experiment:
    return _load(folder, *_keys(context))


def _load(folder: Path, name: str, override: str, *, outside: bool = True) -> Experiment:
    return config.load(folder / name, split_override(override), outside=outside)


def _keys(context: Context) -> tuple[str, str]:
    """Return the two run-config keys: the experiment's file and the overrides, split as a shell would."""
    return str(context.run_config["experiment"]), str(context.run_config.get("override", ""))


@lru_cache(maxsize=1)
def _workbench(folder: Path, name: str, override: str, plan: bytes) -> "Workbench":
    """Build the parts once a process: Flower calls the app anew for every message."""
    from fedpeft.adapters.plan import Plan
    from fedpeft.training.workbench import assemble

    return assemble(_load(folder, name, override), Plan.from_bytes(plan))
