"""The commands ``fedpeft deploy``: make a deployment, start it here, hand it an experiment."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpeft.cli_options import ExperimentFile, Overrides, output_changes
from fedpeft.errors import InputError

__all__ = ["Authority", "Superlink", "deploy_app", "operator_at"]

deploy_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Federations on real nodes.")

Out = Annotated[Path | None, typer.Option(help="The run directory; runs/NAME when not given.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Superlink = Annotated[str, typer.Option(help="HOST:PORT of the SuperLink's own API.")]
Authority = Annotated[Path, typer.Option(help="Who signed its certificate.")]
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
    typer.echo(f"  {folder}/authority: two keys that sign; keep them off all of these machines")
    typer.echo("  nothing is pinned yet: see fedpeft deploy pins --help")
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
    folder: Folder, file: ExperimentFile, overrides: Overrides = None, out: Out = None, resume: Resume = False
) -> None:
    """Run an experiment on a deployment that is up on this machine, and follow it."""
    from fedpeft.deploy.init import read
    from fedpeft.deploy.submit import local_operator

    _follow(local_operator(read(folder)), file, overrides, out, resume=resume)


@deploy_app.command()
def submit(
    file: ExperimentFile,
    superlink: Superlink,
    root_certificates: Authority,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Run an experiment on a SuperLink, from where its server's half writes run directories, and follow it."""
    with operator_at(superlink, root_certificates) as operator:
        _follow(operator, file, overrides, out, resume=resume)


@deploy_app.command()
def register(
    keys: Annotated[list[Path], typer.Argument(metavar="KEY.pub...", help="Public keys of clients.")],
    superlink: Superlink,
    root_certificates: Authority,
) -> None:
    """Admit clients by their keys; run where the SuperLink's own API is reachable."""
    from fedpeft.deploy.register import register as admit

    with operator_at(superlink, root_certificates) as operator:
        admit(operator, [key.resolve() for key in keys])
    typer.echo(f"{len(keys)} keys are admitted")


@deploy_app.command()
def pins(file: ExperimentFile, overrides: Overrides = None) -> None:
    """Print the manifest that an experiment is just within; run where data and base model are.

    It is TOML: loosen or tighten it before it is signed with fedpeft deploy pin.
    """
    from fedpeft import config
    from fedpeft.pinning.made import pins_of
    from fedpeft.pinning.manifest import to_toml
    from fedpeft.training.workbench import assemble

    typer.echo(to_toml(pins_of(assemble(config.load(file, overrides or [])))), nl=False)


@deploy_app.command()
def pin(
    folder: Folder, manifest: Annotated[Path, typer.Argument(metavar="PINS.toml", help="What clients take part in.")]
) -> None:
    """Sign a manifest for every client of a deployment; their trainers refuse all else once they are started anew."""
    from fedpeft.deploy.init import pin as sign
    from fedpeft.deploy.init import read

    for path in sign(read(folder), manifest.read_text(encoding="utf-8")):
        typer.echo(f"{path}: written and signed")


@contextmanager
def operator_at(superlink: str, root_certificates: Path) -> Iterator[Any]:
    """Lend an operator of a SuperLink, whose connection is forgotten with the block."""
    import tempfile

    from fedpeft.engines.operator import Operator, environment

    if not root_certificates.is_file():
        raise InputError(f"--root-certificates = {root_certificates}: no such file")
    with tempfile.TemporaryDirectory(prefix="fedpeft-") as scratch:
        made = environment(Path(scratch), superlink, certificates=root_certificates.resolve())
        yield Operator(environment=made, folder=Path(scratch))


def _follow(operator: Any, file: Path, overrides: list[str] | None, out: Path | None, *, resume: bool) -> None:
    from fedpeft import config
    from fedpeft.deploy.submit import submit
    from fedpeft.report.progress import watching

    changes = [*(overrides or []), *output_changes(out, resume=resume, overwrite=False)]
    with watching() as watcher:
        submit(operator, config.load(file, changes), watcher=watcher)
