"""The command ``fedpeft trainer``: a resident process that answers for a node's Flower app."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from fedpeft import config
from fedpeft.errors import InputError

__all__ = ["app"]

app = typer.Typer()


@app.command()
def trainer(
    listen: Annotated[str, typer.Option(help="unix:///folder/name.sock, or loopback: 127.0.0.1:PORT.")],
    state: Annotated[Path, typer.Option(help="Folder where clients' memories are kept.")],
    experiment: Annotated[
        Path | None, typer.Option(help="Work for this experiment alone; the app's own when not given.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--override", "--set", metavar="KEY=VALUE", help="Change one of its keys.")
    ] = None,
    lifetime_epsilon: Annotated[
        float | None, typer.Option(help="Privacy budget of each client over all experiments, by Renyi's accountant.")
    ] = None,
    lifetime_delta: Annotated[float | None, typer.Option(help="Probability with which it may not hold.")] = None,
    pins: Annotated[Path | None, typer.Option(help="Manifest of what may be asked; all else is refused.")] = None,
    pins_key: Annotated[Path | None, typer.Option(help="Public key of who must have signed it.")] = None,
    application_key: Annotated[
        Path | None, typer.Option(help="File of the key by which this client signs its replies.")
    ] = None,
) -> None:
    """Hold model and data for a node's Flower app."""
    if overrides and experiment is None:
        raise InputError("--override changes the file of --experiment; give that too, or leave it out")
    if pins_key is not None and pins is None:
        raise InputError("--pins-key says who signed the manifest of --pins; give that too, or leave it out")
    settings = config.load(experiment, overrides or []) if experiment else None
    logging.getLogger("fedpeft").setLevel(logging.INFO)
    from fedpeft.privacy.own import Lifetime

    lifetime = Lifetime.of(lifetime_epsilon, lifetime_delta, where="--lifetime-epsilon, --lifetime-delta")
    from fedpeft.engines.trainer import run_trainer
    from fedpeft.pinning.gate import gate_at
    from fedpeft.wire.signature import read_signer

    gate = gate_at(pins, pins_key) if pins is not None else None
    signer = read_signer(application_key) if application_key is not None else None
    run_trainer(listen, state, settings, lifetime=lifetime, gate=gate, signer=signer)
