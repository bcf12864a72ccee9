"""The command ``fedpeft``. Exit codes: 0 done, 1 a run failed, 2 bad input."""

import json
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpeft import __version__, cli_files, cli_operations, cli_trainer, config, plugins
from fedpeft.cli_deploy import deploy_app
from fedpeft.cli_options import ExperimentFile, Overrides, output_changes
from fedpeft.cli_privacy import privacy_app
from fedpeft.config import Experiment
from fedpeft.engines.forking import begin
from fedpeft.errors import FedpeftError, InputError
from fedpeft.report.run_directory import RunDirectory
from fedpeft.report.text import one_line

__all__ = ["app", "main"]

_LOG = logging.getLogger(__name__)
_INTERRUPTED = 130
_ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""What libraries are told unless the caller tells them otherwise: they report to nobody."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Federated parameter-efficient fine-tuning.",
)

app.add_typer(cli_files.app)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


class Engine(StrEnum):
    """Where a simulation runs."""

    inline = "inline"
    flower = "flower"


class LogFormat(StrEnum):
    """How log lines are written."""

    text = "text"
    json = "json"


@app.command()
def simulate(
    file: ExperimentFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/NAME when not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in that directory.")] = False,
    engine: Annotated[Engine, typer.Option(help="inline: this process; flower: Flower's simulation runtime.")] = (
        Engine.inline
    ),
    profile: Annotated[bool, typer.Option("--profile", help="Say where each round's time went.")] = False,
) -> None:
    """Run a federation on this machine."""
    if profile and engine is not Engine.inline:
        raise InputError(f"--profile: has no effect with --engine {engine.value}; use the inline engine")
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other; give one of them")
    changes = [*(overrides or []), *output_changes(out, resume=resume, overwrite=overwrite)]
    if engine is Engine.inline and (glanced := config.glance(file, changes)) is not None:
        begin(*glanced)
    experiment = config.load(file, changes)
    RunDirectory.check(experiment)
    again = ["fedpeft", "simulate", str(file), *(f"--set={change}" for change in overrides or [])]
    from fedpeft.report.progress import watching

    with _interruptible(experiment, again), watching() as plain, _profiled(experiment, plain, profile) as watcher:
        _engine(engine)(experiment, watcher=watcher)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Experiments to check.")],
    overrides: Overrides = None,
) -> None:
    """Check experiment files: every error at once, nothing is run."""
    problems = []
    for file in files:
        try:
            experiment = config.load(file, overrides or [])
            typer.echo(f"{file}: valid, {experiment.hash[:12]}")
        except FedpeftError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


@app.command("list")
def list_plugins(
    group: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(plugins.GROUPS)}; all when not given.")
    ] = None,
) -> None:
    """List what can be named in an experiment file, one line each."""
    if group is not None and group not in plugins.GROUPS:
        raise InputError(f"no group {group!r}{plugins.nearest(group, list(plugins.GROUPS))}")
    for name in [group] if group else plugins.GROUPS:
        summaries = plugins.describe(name)
        typer.echo(name)
        for plugin, summary in summaries.items():
            typer.echo(f"  {plugin:<{max(map(len, summaries))}}  {summary}")


@app.command()
def evaluate(run: RunFolder) -> None:
    """Print a finished run's metrics on its held-out data, as JSON."""
    from fedpeft.inference import evaluate_run

    typer.echo(json.dumps(evaluate_run(run), indent=1))


@app.command()
def predict(
    run: RunFolder,
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Texts, or prompts to continue.")] = None,
    text2: Annotated[str | None, typer.Option(help="Second text of a pair; goes with a single TEXT.")] = None,
    file: Annotated[Path | None, typer.Option(help='Inputs as JSON lines: {"text": ...} or {"image": ...}.')] = None,
) -> None:
    """Answer inputs with a finished run: one label or text a line."""
    inputs = _inputs(text or [], text2, file)
    from fedpeft.inference import open_run, predict

    for answer in predict(open_run(run), inputs):
        typer.echo(one_line(answer))


@app.command()
def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="Where to write; must not exist or be empty.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold the adapter into a plain model.")] = False,
) -> None:
    """Copy a run's adapter out, or write the plain merged model."""
    from fedpeft.inference import export_run

    export_run(run, folder, merge=merge)
    typer.echo(f"{folder}: written")


app.add_typer(cli_trainer.app)
app.add_typer(cli_operations.app)
app.add_typer(privacy_app, name="privacy")
app.add_typer(deploy_app, name="deploy")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens, with tracebacks of failed clients.")
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="FEDPEFT_LOG_FORMAT", help="json: one object a line, logs and rounds alike.")
    ] = LogFormat.text,
) -> None:
    if version:
        typer.echo(f"fedpeft {__version__}")
        raise typer.Exit
    level = logging.INFO if verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ["FEDPEFT_LOG_FORMAT"] = log_format.value  # what this process starts speaks the same
    if log_format is LogFormat.json:
        from fedpeft.report.logs import JsonFormatter

        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
    # This library has a handler and a level of its own, and tells of each retry.
    os.environ.setdefault("HF_HUB_VERBOSITY", "info" if verbose else "error")


def main() -> None:
    """Run the command; errors raised on purpose, and those of the file system, become one message and an exit code."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        app(prog_name="fedpeft")
    except (FedpeftError, OSError) as error:
        _LOG.info("what led to the error below", exc_info=error)
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise SystemExit(error.exit_code if isinstance(error, FedpeftError) else 1) from None


def _engine(engine: Engine) -> Any:
    if engine is Engine.inline:
        from fedpeft.engines.inline import simulate
    else:
        from fedpeft.engines.flower import simulate
    return simulate


@contextmanager
def _interruptible(experiment: Experiment, again: list[str]) -> Iterator[None]:
    """Turn Ctrl-C into an exit code, and say how to go on where there is something to go on with."""
    try:
        yield
    except KeyboardInterrupt:
        begun = RunDirectory.begun(experiment)
        command = shlex.join([*again, "--out", str(begun.path), "--resume"]) if begun else ""
        hint = f"the last checkpoint stands; go on with: {command}" if begun else "nothing has been written"
        typer.secho(f"interrupted; {hint}", err=True)
        raise typer.Exit(_INTERRUPTED) from None


@contextmanager
def _profiled(experiment: Experiment, watcher: Any, wanted: bool) -> Iterator[Any]:
    """Yield who looks on, with a clock where the time is to be told."""
    if not wanted:
        yield watcher
        return
    from fedpeft.report.profile import profiled

    with profiled(watcher, experiment, typer.echo) as profiler:
        yield profiler


def _inputs(texts: list[str], text2: str | None, file: Path | None) -> list[dict[str, Any]]:
    if bool(texts) == (file is not None):
        raise InputError("give either TEXT or --file")
    if text2 is not None and len(texts) != 1:
        raise InputError(f"--text2 goes with one TEXT, got {len(texts) or '--file'}")
    if file is not None:
        return [_row(line, f"{file}:{number}") for number, line in enumerate(_lines(file), 1) if line.strip()]
    return [{"text": text, "prompt": text, **({} if text2 is None else {"text2": text2})} for text in texts]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, got {type(row).__name__}")
    return row
