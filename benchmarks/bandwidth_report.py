"""The table and the plots of accuracy against bytes, of the runs there are; what was not run is said."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.drawing import draw
from benchmarks.jobs import table, write_section

__all__ = ["section", "write_report"]

Result = Mapping[str, Any]
_ALLOWED = 0.005
"""Accuracy that may be lost."""


def write_report(results: Sequence[Result], *, datasets: Iterable[str], arms: Iterable[str], every: int) -> None:
    """Write the section of docs/results.md and a plot a data set."""
    names, known = list(datasets), list(arms)
    write_section("bandwidth", section(results, datasets=names, arms=known, every=every))
    for dataset in names:
        lines = {arm: _curve(_of(results, dataset, arm)) for arm in known}
        if drawn := {arm: line for arm, line in lines.items() if line}:
            title = f"Accuracy by log10 of bytes both ways, {dataset}"
            draw(f"bandwidth_{dataset}", title, drawn, across="log10 of bytes both ways")


def section(results: Sequence[Result], *, datasets: Sequence[str], arms: Sequence[str], every: int) -> str:
    """Return the section: a row for each arm, and what is still to be measured."""
    rows = [
        _row(dataset, arm, _of(results, dataset, arm), _of(results, dataset, "float32"))
        for dataset in datasets
        for arm in arms
    ]
    columns = ("data", "codec", "seeds", "accuracy", "points lost", "bytes up", "bytes down", "fewer in all", "sooner")
    head = f"{table(columns, rows)}\n\n" + "\n".join(
        f"![accuracy by bytes on {dataset}](results/bandwidth_{dataset}.svg)"
        for dataset in datasets
        if any(result["dataset"] == dataset for result in results)
    )
    return f"""## Accuracy against bytes

MiniLM, first trained whole on a public part of the data (a quarter of mr_polarity, 35 % of CLINC150), then LoRA r = 8
in its last block, FedAvg of ten clients, all drawn, at equal rounds; mean and standard deviation over seeds, accuracy
in percent. Bytes are of headers and bodies, of one run. *Points lost* and *fewer in all* are against float32 of the
same seed: its accuracy less this arm's, and its bytes both ways over this arm's. *Sooner*: how many times fewer bytes
both ways this arm has sent when its accuracy, looked at every {every} rounds, first is that of float32's end less 0.5
points, over those that float32 has sent when it first is; "-" where it never is. Made by `python -m
benchmarks.bandwidth`; every run and its curve are in `docs/results/bandwidth.jsonl`.

{head}"""


def _of(results: Sequence[Result], dataset: str, arm: str) -> list[Result]:
    return [result for result in results if (result["dataset"], result["arm"]) == (dataset, arm)]


def _row(dataset: str, arm: str, own: Sequence[Result], plain: Sequence[Result]) -> tuple[str, ...]:
    if not own:
        return (dataset, arm, "0", "not measured yet", *[""] * 5)
    up, down = (round(statistics.mean(result[key] for result in own)) for key in ("bytes_up", "bytes_down"))
    base = {result["seed"]: result for result in plain}
    paired = [(base[result["seed"]], result) for result in own if result["seed"] in base]
    lost = [100 * (first["accuracy"] - second["accuracy"]) for first, second in paired]
    sooner = [_sooner(first, second) for first, second in paired]
    reached = [ratio for ratio in sooner if ratio is not None]
    return (
        dataset,
        arm,
        str(len(own)),
        _spread([100 * result["accuracy"] for result in own]),
        _spread(lost),
        f"{up:,}",
        f"{down:,}",
        _times([_total(first) / _total(second) for first, second in paired]),
        _times(reached) if len(reached) == len(paired) else "-",
    )


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}" if values else "-"


def _times(ratios: Sequence[float]) -> str:
    return f"{statistics.mean(ratios):.1f}x" if ratios else "-"


def _total(result: Result) -> int:
    return int(result["bytes_up"]) + int(result["bytes_down"])


def _sooner(base: Result, result: Result) -> float | None:
    wanted = base["accuracy"] - _ALLOWED
    first, own = (next((s for s, accuracy in r["curve"] if s and accuracy >= wanted), None) for r in (base, result))
    return first / own if first and own else None


def _curve(own: Sequence[Result]) -> list[tuple[float, float]]:
    """Return (log10 of bytes, accuracy), means over seeds, of the evaluations after round 0."""
    points = zip(*(result["curve"][1:] for result in own), strict=True)
    means = ([statistics.mean(values) for values in zip(*point, strict=True)] for point in points)
    return [(math.log10(sent), accuracy) for sent, accuracy in means]
