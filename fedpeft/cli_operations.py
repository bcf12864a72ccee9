"""Commands of who runs a federation: keep a job alive, look at a run, look for what is wrong with a machine."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpeft.cli_deploy import operator_at
from fedpeft.cli_options import ExperimentFile, Overrides, output_changes
from fedpeft.errors import InputError

__all__ = ["app"]

app = typer.Typer()

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command()
def serve(
    file: ExperimentFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/NAME when not given.")] = None,
    deployment: Annotated[Path | None, typer.Option(help="A deployment that is up on this machine.")] = None,
    superlink: Annotated[str | None, typer.Option(help="Or HOST:PORT of a SuperLink's own API.")] = None,
    root_certificates: Annotated[Path | None, typer.Option(help="Who signed its certificate.")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Starts in a row that may bring no new round.")] = 8,
    metrics_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Serve Prometheus metrics there.")] = None,
    metrics_host: Annotated[str, typer.Option(help="Address they are served at.")] = "127.0.0.1",
) -> None:
    """Keep a job alive on a deployment.

    What dies is started again and goes on where it was; the exit code is 0 when the run is complete.
    """
    from fedpeft import config
    from fedpeft.deploy.serve import Patience
    from fedpeft.deploy.serve import serve as keep_alive
    from fedpeft.report.metrics import measured
    from fedpeft.report.progress import watching

    with ExitStack() as stack:
        operator = _operator(stack, deployment, superlink, root_certificates)
        experiment = config.load(file, [*(overrides or []), *output_changes(out, resume=False, overwrite=False)])
        watcher = stack.enter_context(measured(stack.enter_context(watching()), port=metrics_port, host=metrics_host))
        patience = Patience(attempts=attempts)
        keep_alive(operator, experiment, watcher=watcher, patience=patience, say=_say)


@app.command()
def status(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Say where a run stands."""
    from fedpeft.report.board import show, standing
    from fedpeft.rounds.fence import current

    found = standing(run, fence=current(run))
    if as_json:
        typer.echo(json.dumps(found.table(), indent=1))
    else:
        show(found)


@app.command()
def watch(
    run: RunFolder,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
) -> None:
    """Show a run live, until it is complete."""
    from fedpeft.report.board import watch as look

    try:
        look(run, seconds=interval)
    except KeyboardInterrupt:
        raise typer.Exit from None


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A machine's folder of deploy init, or the whole.")],
    host: Annotated[str | None, typer.Option(help="The server's public name: its runtime API must not answer.")] = None,
    clock: Annotated[str | None, typer.Option(help="A URL of the server: its Date header is compared.")] = None,
    trainer: Annotated[str | None, typer.Option(help="Address of a trainer that should answer.")] = None,
) -> None:
    """Look for what is wrong with a machine.

    Each fault comes with what mends it, and the exit code is 1 if there is any.
    """
    from fedpeft.deploy.doctor import Examined, examine
    from fedpeft.deploy.machine import Surroundings

    def say(done: Examined) -> None:
        typer.echo(f"{'FAULT' if done.faults else 'ok   '} {done.machine.name}: {done.check}")
        for fault in done.faults:
            typer.echo(f"        {fault.words}\n        remedy: {fault.remedy}")

    found = examine(folder, Surroundings(host=host, clock=clock, trainer=trainer), say=say)
    faults = sum(len(each.faults) for each in found)
    typer.echo(f"{len(found)} checks, {faults} faults")
    if faults:
        raise typer.Exit(1)


def _operator(stack: ExitStack, deployment: Path | None, superlink: str | None, certificates: Path | None) -> Any:
    if (deployment is None) == (superlink is None) or (superlink is None) != (certificates is None):
        raise InputError("name where it runs: --deployment DIR, or --superlink HOST:PORT with --root-certificates FILE")
    if superlink is not None and certificates is not None:
        return stack.enter_context(operator_at(superlink, certificates))
    from fedpeft.deploy.init import read
    from fedpeft.deploy.submit import local_operator

    return local_operator(read(deployment or Path()))


def _say(words: str) -> None:
    typer.echo(words, err=True)
