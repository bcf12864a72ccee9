"""The section of docs/results.md that benchmarks/aggregation.py makes, and its pictures."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.drawing import draw
from benchmarks.jobs import table
from fedpeft.report.plot import Point

__all__ = ["section"]

Result = Mapping[str, Any]
Part = Mapping[str, Sequence[Result]]

_HEAD = ("strategy", "own rate", "accuracy", "at fedavg's rate", "MB up", "MB down", "server ms", "lost first", "last")
_DRAWN = ("fedavg", "lora_fair", "fedex_lora", "flora", "ffa_lora", "florist", "rolora", "hetlora")


def section(parts: Mapping[str, Part], sweep: Sequence[Result]) -> str:
    """Return the tables of what was run, and no more; write the pictures beside the results."""
    told = [_part(name, part) for name, part in parts.items()]
    return "\n\n".join([_INTRODUCTION, *told, *([_swept(sweep)] if sweep else [])])


_INTRODUCTION = """## Every way of aggregating

One federation, one switch: `strategy.name`. LoRA of rank 8 (fed_sb: lora_sb of rank 32; hetlora: half the clients
with rank 4), ten clients, all drawn, every strategy sees the same number of examples. Clients train by SGD on
CLINC150 and by AdamW on the others (scaffold: SGD at 300 times the rate). Each has its defaults, but server rates of
the Adam family (0.01, adagrad 0.03) and one trimmed client. *Own rate*: the best of the grid on another seed and
validation examples. Accuracy in percent, mean and standard deviation over three seeds, at the own rate and at the one
that is fedavg's best. MB of one run, both at the own rate. *Server ms*: prepare, accumulate and apply of a round.
*Lost*: ||R|| / ||DW*|| of the first and last round, R what the next global adapter lacks of the clients' mean product
DW* (`benchmarks/watched.py`); "-" where there is no pair or clients keep one factor. fedsa_lora is scored on its
clients, each on held-out examples of its own. Made by `python -m benchmarks.aggregation`; every run is in
`docs/results/aggregation.json`."""


def _part(name: str, part: Part) -> str:
    own, shared = (_by_strategy(part[key]) for key in ("own", "shared"))
    rows = sorted((_row(strategy, own[strategy], shared[strategy]) for strategy in own), key=lambda row: -row[0])
    rate = shared["fedavg"][0]["rate"]
    draw(f"aggregation_{name}", "||R|| / ||DW*|| by round, seed 0", _losses(own))
    grid = ", ".join(f"{rate:g}" for rate in sorted({result["rate"] for result in part["tuning"]}))
    return f"""### {name}

Rates tried: {grid}; fedavg's best is {rate:g}.

{table(_HEAD, [row[1] for row in rows])}

![what each round loses](results/aggregation_{name}.svg)"""


def _by_strategy(results: Sequence[Result]) -> dict[str, list[Result]]:
    return {
        name: [r for r in results if r["strategy"] == name] for name in dict.fromkeys(r["strategy"] for r in results)
    }


def _row(name: str, own: Sequence[Result], shared: Sequence[Result]) -> tuple[float, tuple[str, ...]]:
    """Return what the row is sorted by, and its cells."""
    told = [result for result in own if "failed" not in result]
    cells = (f"`{name}`", f"{own[0]['rate']:g}", _score(own), _score(shared))
    if not told:
        return 0.0, (*cells, *["-"] * 5)
    sizes = (f"{statistics.mean(result[key] for result in told) / 1e6:.1f}" for key in ("bytes_up", "bytes_down"))
    taken = statistics.mean(1000 * result["server_seconds"] / result["num_rounds"] for result in told)
    lost = (_ratio([result["lost"][index] for result in told]) for index in (0, -1))
    return statistics.mean(result["accuracy"] for result in own), (*cells, *sizes, f"{taken:.1f}", *lost)


def _score(results: Sequence[Result]) -> str:
    scores = [100 * float(result["accuracy"]) for result in results]
    failed = sum("failed" in result for result in results)
    return f"{statistics.mean(scores):.1f} ± {statistics.pstdev(scores):.1f}" + (
        f" ({failed} failed)" if failed else ""
    )


def _ratio(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.1e}" if known else "-"


def _losses(own: Mapping[str, Sequence[Result]]) -> dict[str, list[Point]]:
    """Return strategy -> (round, loss) of seed 0, where there is one."""
    return {
        name: points
        for name in _DRAWN
        if (points := [(float(i), v) for i, v in enumerate(own[name][0].get("lost", []), 1) if v is not None])
    }


def _swept(sweep: Sequence[Result]) -> str:
    """Return the sweep's table, and draw what fedavg and lora_fair lose of a step against rate x steps."""
    found = {(r["strategy"], r["local_steps"], r["rate"]): r for r in sweep}
    names = list(dict.fromkeys(result["strategy"] for result in sweep))
    settings = sorted({(result["local_steps"], result["rate"]) for result in sweep})
    rows = [
        (str(steps), f"{rate:g}", *(_swept_cell(found[name, steps, rate]) for name in names))
        for steps, rate in settings
    ]
    series = {
        f"{name}, {steps} steps": [
            (rate * steps, value)
            for rate in sorted({rate for _, rate in settings})
            if (value := _first(found[name, steps, rate])) is not None
        ]
        for name in ("fedavg", "lora_fair")
        for steps in sorted({steps for steps, _ in settings})
    }
    draw("aggregation_sweep", "first round's ||R|| / ||DW*|| against rate x local steps", series, across="length")
    return f"""### How far clients go alone: local steps x learning rate

CLINC150 by domain, seed 0, as many examples in every cell: accuracy, and in brackets the first round's
||R|| / ||DW*||.

{table(("local steps", "rate", *names), rows)}

![the sweep](results/aggregation_sweep.svg)"""


def _first(result: Result) -> float | None:
    value = (result.get("lost") or [None])[0]
    return None if value is None else float(value)


def _swept_cell(result: Result) -> str:
    lost = _first(result)
    return f"{100 * result['accuracy']:.1f}" + (f" ({lost:.1e})" if lost is not None else "")
