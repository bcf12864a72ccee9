"""What several commands are told in the same words: an experiment's file, changes to it, and where results go."""

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ExperimentFile", "Overrides", "output_changes"]

ExperimentFile = Annotated[Path, typer.Argument(metavar="FILE", help="An experiment: one TOML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key, for example train.batch_size=8.")
]


def output_changes(out: Path | None, *, resume: bool, overwrite: bool) -> list[str]:
    """Return the overrides that say where results go; they are no part of the experiment's identity."""
    changes = [f"output.directory={json.dumps(str(out.resolve()))}"] if out else []
    if resume or overwrite:
        changes.append(f'output.if_exists="{"resume" if resume else "overwrite"}"')
    return changes
