"""Commands on files: look into one; make an adapter small, large again, or one of several."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedpeft.errors import InputError

__all__ = ["app"]

app = typer.Typer()

NewFolder = Annotated[Path, typer.Option("--out", "-o", help="Where to write; must not exist or be empty.")]


class Scale(StrEnum):
    """How large kept entries arrive."""

    mean_abs = "mean_abs"
    std = "std"


class Way(StrEnum):
    """How adapters are merged."""

    task_arithmetic = "task_arithmetic"
    ties = "ties"


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A wire header, checkpoint, ComPEFT or safetensors file.")],
) -> None:
    """Print what a file says of itself; no tensor is read."""
    from fedpeft.report.inspect import rows

    found, console = rows(file), Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        for key, value in found:
            typer.echo(f"{key}: {value}")
        return
    table = Table(show_header=False)
    for key, value in found:
        table.add_row(key, value)
    console.print(table)


@app.command()
def compress(
    adapter: Annotated[Path, typer.Argument(help="An HF PEFT adapter's folder; its lora_A and lora_B are packed.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    density: Annotated[float, typer.Option(help="Share of the entries that are kept.")] = 0.05,
    scale: Annotated[Scale, typer.Option(help="How large they arrive.")] = Scale.mean_abs,
    alpha: Annotated[float | None, typer.Option(help="Of --scale std: times the standard deviation.")] = None,
) -> None:
    """Pack a LoRA adapter as one ComPEFT file."""
    from fedpeft.report.archive import write_archive
    from fedpeft.report.folders import read_folder

    options = {"density": density, "scale": scale.value, **({} if alpha is None else {"alpha": alpha})}
    folder = read_folder(adapter)
    if out.exists():
        raise InputError(f"{out}: exists; name another file")
    size = write_archive(out, folder, options, where=str(adapter))
    before = sum(tensor.numel() * tensor.element_size() for tensor in folder.tensors.values())
    typer.echo(f"{out}: {size} bytes, {before / size:.1f} times smaller")


@app.command()
def decompress(file: Annotated[Path, typer.Argument(help="A ComPEFT file.")], out: NewFolder) -> None:
    """Unpack a ComPEFT file to a folder that peft loads."""
    from fedpeft.report.archive import read_archive
    from fedpeft.report.folders import write_folder

    write_folder(out, read_archive(file))
    typer.echo(f"{out}: written")


@app.command()
def merge(
    adapters: Annotated[list[Path], typer.Argument(help="Adapters' folders, or ComPEFT files.")],
    out: NewFolder,
    method: Annotated[Way, typer.Option(help="How.")] = Way.task_arithmetic,
    weights: Annotated[str | None, typer.Option(help="One an adapter, with commas between.")] = None,
    density: Annotated[float | None, typer.Option(help="Of ties: share kept of each; 0.2 when not given.")] = None,
) -> None:
    """Merge LoRA adapters of one base model and one shape."""
    from fedpeft.report.folders import write_folder
    from fedpeft.report.merging import merged

    if density is not None and method is not Way.ties:
        raise InputError("--density has no effect with --method task_arithmetic; leave it out")
    folders = [_adapter(path) for path in adapters]
    kept = {} if density is None else {"density": density}
    write_folder(out, merged(folders, method=method.value, weights=_numbers(weights), **kept))
    typer.echo(f"{out}: written")


def _adapter(path: Path) -> Any:
    from fedpeft.report.archive import read_archive
    from fedpeft.report.folders import read_folder

    return read_folder(path) if path.is_dir() else read_archive(path)


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--weights {text!r}: expected numbers with commas between") from error
