"""The commands ``fedpeft privacy``: what a budget buys before a run, what a run has spent after it."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from fedpeft.errors import InputError, RunError

if TYPE_CHECKING:
    from fedpeft.privacy.mechanism import Mechanism

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
def spent(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run directory; of several, what they cost together.")
    ],
    delta: Annotated[float | None, typer.Option(help="Of several runs; the least of theirs when not given.")] = None,
) -> None:
    """Print what a run, finished or not, has spent, and what may be claimed, as JSON; of several, together."""
    if len(runs) > 1:
        typer.echo(json.dumps(_together(runs, delta), indent=1))
        return
    if delta is not None:
        raise InputError("--delta: without effect on one run, whose delta is its experiment's; leave it out")
    made, charged = _charged(runs[0])
    typer.echo(json.dumps(made.statement(charged), indent=1))


@privacy_app.command()
def own(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="Of a trainer, or of a node's privacy-state.")],
    delta: Annotated[float, typer.Option(help="Probability with which epsilon may not hold.")],
) -> None:
    """Print, as JSON, what each client of this machine has spent over all experiments, by its own ledgers."""
    from fedpeft.privacy.own import ACCOUNTANT, spent_by_client

    folder = state / "privacy" if (state / "privacy").is_dir() else state
    if not (found := spent_by_client(folder, delta=delta)):
        raise InputError(f"{state}: no ledger of any client is there; name the --state of a trainer, or privacy-state")
    typer.echo(json.dumps({"delta": delta, "accountant": ACCOUNTANT, "epsilon": found}, indent=1))


def _together(runs: list[Path], delta: float | None) -> dict[str, Any]:
    """Return what runs cost those who are in all of them."""
    from fedpeft.privacy.accounting import Releases, composed
    from fedpeft.privacy.own import ACCOUNTANT

    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError("a run is given twice; it was paid for once")
    found = {str(run): _charged(run) for run in runs}
    if len(units := {made.privacy.unit for made, _ in found.values()}) > 1:
        raise InputError(f"units {sorted(units)}: neighbours of an example and of a client differ; give runs of one")
    if large := [name for name, (made, _) in found.items() if made.privacy.population is not None]:
        raise InputError(f"{', '.join(large)}: has the noise of a larger federation and says nothing of these clients")
    least = min(made.privacy.delta for made, _ in found.values()) if delta is None else delta
    parts = [
        Releases(noise_multiplier=made.noise_multiplier, sample_rate=made.sample_rate, steps=made.steps * charged)
        for made, charged in found.values()
    ]
    return {
        "unit": units.pop(),
        "epsilon": composed(parts, delta=least, accountant=ACCOUNTANT),
        "delta": least,
        "accountant": ACCOUNTANT,
        "composition": "over all runs, for whoever takes part in each of them and is charged most in each",
        "runs": {name: made.statement(charged) for name, (made, charged) in found.items()},
    }


def _charged(run: Path) -> tuple["Mechanism", int]:
    """Return a run's mechanism and the rounds of the one who is charged most."""
    from fedpeft.data.base import VirtualPartition
    from fedpeft.privacy.mechanism import mechanism
    from fedpeft.report.run_directory import RunDirectory
    from fedpeft.report.watch import clients_of

    directory = RunDirectory.open(run)
    experiment = directory.experiment()
    if experiment.privacy is None:
        raise InputError(f"{run}: a run without [privacy]; it claims nothing")
    if not (shares := directory.partition()):
        raise InputError(f"{run}: its clients are not dealt yet, so nothing was spent")
    made = mechanism(
        experiment.privacy,
        train=experiment.train,
        rounds=experiment.rounds,
        num_clients=clients_of(shares),
        virtual=isinstance(experiment.partition.build(), VirtualPartition),
    )
    return made, directory.ledger.charged_rounds(experiment.privacy)


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
