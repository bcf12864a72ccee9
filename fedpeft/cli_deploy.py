"""The commands ``fedpeft deploy``: make a deployment, start it here, hand it an experiment."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.errors import InputError

__all__ = ["deploy_app"]

deploy_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Federations on real nodes.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A deployment that init made.")]


@deploy_app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    host: Annotated[str, typer.Option(help="Name or address under which clients reach the server.")],
    clients: Annotated[int, typer.Option(min=1, help="How many clients there are.")],
) -> None:
    """Make keys, certificates, secrets and docker-compose files: one folder for each machine."""
    from fedpeft.deploy.init import init as make

    make(folder, num_clients=clients, host=host)
    typer.echo(f"{folder}: written")
    typer.echo(f"  {folder}/server goes to {host}")
    typer.echo(f"  {folder}/client-1 to client-{clients}: one to each client, by a way that keeps secrets")
    typer.echo(f"  {folder}/authority/ca.key: keep it off all of these machines")
    typer.echo(f"try it here: fedpeft deploy up {folder} --local")


@deploy_app.command()
def up(
    folder: Folder,
    local: Annotated[bool, typer.Option("--local", help="As plain processes on 127.0.0.1.")] = False,
) -> None:
    """Start all of a deployment on this machine, until Ctrl-C."""
    if not local:
        raise InputError(
            f"deploy up starts plain processes, with --local; for containers: docker compose -f "
            f"{folder}/docker-compose.yml up"
        )
    from fedpeft.deploy.init import read
    from fedpeft.deploy.local import up as start

    with start(read(folder), say=typer.echo) as running:
        typer.echo(f"ready: fedpeft deploy run {folder} EXPERIMENT.toml")
        try:
            while True:
                running.require_running()
                time.sleep(1.0)
        except KeyboardInterrupt:
            typer.echo("ending")


@deploy_app.command()
def run(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An experiment: one TOML file.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/NAME when not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
) -> None:
    """Run an experiment on a deployment that is up on this machine, and follow it."""
    from fedpeft import config
    from fedpeft.deploy.init import read
    from fedpeft.deploy.submit import local_operator, submit
    from fedpeft.report.progress import watching

    changes = [*(overrides or [])]
    changes += [f"output.directory={out}"] if out else []
    changes += ["output.if_exists=resume"] if resume else []
    experiment = config.load(file, changes)
    operator = local_operator(read(folder))
    with watching() as watcher:
        submit(operator, experiment, watcher=watcher)


@deploy_app.command()
def register(
    keys: Annotated[list[Path], typer.Argument(metavar="KEY.pub...", help="Public keys of clients.")],
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink's own API.")],
    root_certificates: Annotated[Path, typer.Option(help="Who signed its certificate.")],
) -> None:
    """Admit clients by their keys; run where the SuperLink's own API is reachable."""
    import tempfile

    from fedpeft.deploy.register import register as admit
    from fedpeft.engines import operator

    with tempfile.TemporaryDirectory(prefix="fedpeft-") as scratch:
        environment = operator.environment(Path(scratch), superlink, certificates=root_certificates.resolve())
        admit(operator.Operator(environment=environment, folder=Path(scratch)), [key.resolve() for key in keys])
    typer.echo(f"{len(keys)} keys are admitted")
