"""The commands ``fedpeft privacy``: what a budget buys before a run, what a run has spent after it."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from fedpeft.errors import InputError, RunError

__all__ = ["privacy_app"]

privacy_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Plan and read a privacy budget.")


@privacy_app.command()
def plan(
    epsilon: Annotated[float, typer.Option(help="The budget.")],
    delta: Annotated[float, typer.Option(help="Probability with which it may not hold.")],
    clients: Annotated[int, typer.Option(min=1, help="Clients of the federation (or examples of a client).")],
    cohort: Annotated[int, typer.Option(min=1, help="Expected a round (or a step).")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds (or steps in all).")],
    parameters: Annotated[int | None, typer.Option(min=1, help="Numbers that carry noise.")] = None,
    accountant: Annotated[str, typer.Option(help="prv or rdp.")] = "prv",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the noise that a budget needs, and what other budgets, cohorts and numbers of rounds would need."""
    if cohort > clients:
        raise InputError(f"--cohort = {cohort}: expected at most --clients = {clients}")
    rows: list[dict[str, Any]] = []
    for name, e, n, t in _choices(epsilon, cohort, rounds, clients):
        noise = _noise(accountant, e, delta, n / clients, t)
        rows.append({"choice": name, "epsilon": e, "cohort": n, "rounds": t, **_figures(noise, n, parameters)})
    if as_json:
        typer.echo(json.dumps({"delta": delta, "clients": clients, "accountant": accountant, "rows": rows}, indent=1))
        return
    _print(rows)
    typer.echo(
        "noise_multiplier: standard deviation of the noise on the sum, in units of clip. noise_to_signal: that of the "
        "mean over the largest mean there can be"
        + (", over all parameters together." if parameters else ", of one parameter; give --parameters for all.")
    )


@privacy_app.command()
def spent(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Print what a run, finished or not, has spent, and what may be claimed, as JSON."""
    from fedpeft.privacy.mechanism import mechanism
    from fedpeft.report.run_directory import RunDirectory

    directory = RunDirectory.open(run)
    experiment = directory.experiment()
    if experiment.privacy is None:
        raise InputError(f"{run}: a run without [privacy]; it claims nothing")
    if not (shares := directory.partition()):
        raise InputError(f"{run}: its clients are not dealt yet, so nothing was spent")
    made = mechanism(experiment.privacy, train=experiment.train, rounds=experiment.rounds, num_clients=len(shares))
    charged = directory.ledger.charged_rounds(experiment.privacy.unit)
    typer.echo(json.dumps(made.statement(charged), indent=1))


@privacy_app.command()
def audit(
    target: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT_OR_RUN", help="An experiment's file, or a run directory.")
    ],
    trials: Annotated[int, typer.Option(min=1000, help="Releases with a canary, and as many without.")] = 100_000,
    canaries: Annotated[int, typer.Option(min=20, help="Of one run.")] = 1000,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999999, help="Of each lower bound.")] = 0.99,
    seed: Annotated[int, typer.Option(help="Of coins and canaries.")] = 0,
) -> None:
    """Attack a private experiment with its own code; print, as JSON, what was found beside what is claimed.

    Of a run directory also how well its adapter tells what it was trained on. Fails if more was found than is claimed.
    """
    from fedpeft import config
    from fedpeft.audit import Effort, membership
    from fedpeft.audit import audit as attack
    from fedpeft.report.run_directory import RunDirectory

    is_run = target.is_dir()
    experiment = RunDirectory.open(target).experiment() if is_run else config.load(target)
    found = attack(experiment, Effort(trials=trials, canaries=canaries, confidence=confidence, seed=seed))
    found |= {"membership": membership(target)} if is_run else {}
    typer.echo(json.dumps(found, indent=1))
    if not found["holds"]:
        raise RunError("the audit found more than is claimed: do not rely on this experiment's epsilon")


def _choices(epsilon: float, cohort: int, rounds: int, clients: int) -> list[tuple[str, float, int, int]]:
    """Return what was asked for, and what is near it."""
    others = [(f"epsilon x {factor:g}", epsilon * factor, cohort, rounds) for factor in (0.5, 2.0)]
    larger = [factor for factor in (2, 10) if cohort * factor <= clients]
    others += [(f"cohort x {factor}", epsilon, cohort * factor, rounds) for factor in larger]
    others += [(f"rounds x {factor:g}", epsilon, cohort, max(1, round(rounds * factor))) for factor in (0.5, 2.0)]
    return [("as asked", epsilon, cohort, rounds), *others]


def _noise(accountant: str, epsilon: float, delta: float, rate: float, steps: int) -> float:
    from fedpeft.privacy.accounting import Accountant, noise_multiplier

    return noise_multiplier(
        epsilon=epsilon,
        sample_rate=rate,
        steps=steps,
        delta=delta,
        accountant=cast(Accountant, accountant),  # another name is refused there
    )


def _figures(noise: float, cohort: int, parameters: int | None) -> dict[str, float]:
    return {"noise_multiplier": noise, "noise_to_signal": noise * math.sqrt(parameters or 1) / cohort}


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], box=None, header_style="bold")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    Console().print(table)
