"""The section of docs/results.md that benchmarks/aggregation.py makes, and its pictures."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.aggregation_jobs import SEEDS
from benchmarks.drawing import draw
from benchmarks.jobs import table
from fedpeft.plugins import names

__all__ = ["section", "told"]

Result = Mapping[str, Any]

_HEAD = ("strategy", "own rate", "accuracy", "at fedavg's rate", "MB up", "MB down", "server ms", "lost first", "last")
_DRAWN = ("fedavg", "lora_fair", "fedex_lora", "flora", "ffa_lora", "florist", "rolora", "hetlora")


def told(parts: Mapping[str, Mapping[str, Sequence[Result]]], sweep: Sequence[Result]) -> dict[str, Any]:
    """Return what the tables are made of, by part and strategy; what has not been run is left out."""
    cells = [
        {key: result[key] for key in ("strategy", "local_steps", "rate", "accuracy")}
        | {"lost_first": (result.get("lost") or [None])[0]}
        for result in sweep
    ]
    return {name: _told_part(part) for name, part in parts.items() if part["own"]} | {"sweep": cells}


def _told_part(part: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    own, shared = (_by_strategy(part[key]) for key in ("own", "shared"))
    return {
        "rates": sorted({result["rate"] for result in part["tuning"]}),
        "shared_rate": part["shared"][0]["rate"] if part["shared"] else None,
        "strategies": {name: _told_strategy(own[name], shared.get(name, [])) for name in own},
    }


def _by_strategy(results: Sequence[Result]) -> dict[str, list[Result]]:
    return {
        name: [r for r in results if r["strategy"] == name] for name in dict.fromkeys(r["strategy"] for r in results)
    }


def _told_strategy(own: Sequence[Result], shared: Sequence[Result]) -> dict[str, Any]:
    whole = [result for result in own if "failed" not in result]
    return {
        "rate": own[0]["rate"],
        "accuracy": [result["accuracy"] for result in own],
        "accuracy_at_shared_rate": [result["accuracy"] for result in shared],
        "num_failed": len(own) - len(whole),
        "bytes_up": _mean(result["bytes_up"] for result in whole),
        "bytes_down": _mean(result["bytes_down"] for result in whole),
        "server_ms_round": _mean(1000 * result["server_seconds"] / result["num_rounds"] for result in whole),
        "lost": whole[0]["lost"] if whole else [],
        "lost_first": _mean(result["lost"][0] for result in whole),
        "lost_last": _mean(result["lost"][-1] for result in whole),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{statistics.mean(known):.6g}") if known else None


def section(found: Mapping[str, Any]) -> str:
    """Return the tables of what was run, and no more; write the pictures beside the results."""
    parts = [_part(name, part) for name, part in found.items() if name != "sweep"]
    return "\n\n".join([_INTRODUCTION, *parts, *([_swept(found["sweep"])] if found["sweep"] else [])])


_INTRODUCTION = """## Every way of aggregating

One federation, one switch: `strategy.name`. LoRA of rank 8 (fed_sb: lora_sb of rank 32; hetlora: half the clients
with rank 4), ten clients, all drawn, every strategy sees the same number of examples. CLINC150: one client a domain, a
small base trained on a public 35 %, clients train by SGD. mr_polarity and qnli: the last block of MiniLM, first
trained whole on a public 25 % and 40 %; Dirichlet 0.5, clients count alike and train by AdamW (scaffold: SGD at 300
times the rate). Each has its defaults, but server rates of
the Adam family (0.01, adagrad 0.03) and one trimmed client. *Own rate*: the best of the grid on another seed and
validation examples. Accuracy in percent, mean and standard deviation over three seeds, at the own rate and at the one
that is fedavg's best. MB of one run, both at the own rate. *Server ms*: prepare, accumulate and apply of a round.
*Lost*: ||R|| / ||DW*|| of the first and last round, R what the next global adapter lacks of the clients' mean product
DW* (`benchmarks/watched.py`); "-" where there is no pair or clients keep one factor. fedsa_lora is scored on its
clients, each on held-out examples of its own. Made by `python -m benchmarks.aggregation`; every run is a
line of `docs/results/aggregation.jsonl`."""


def _part(name: str, part: Mapping[str, Any]) -> str:
    strategies = part["strategies"]
    order = sorted(strategies, key=lambda strategy: -statistics.mean(strategies[strategy]["accuracy"]))
    lost = {strategy: strategies[strategy]["lost"] for strategy in _DRAWN if strategy in strategies}
    points = {name: [(float(i), v) for i, v in enumerate(values, 1) if v is not None] for name, values in lost.items()}
    draw(f"aggregation_{name}", "||R|| / ||DW*|| by round, seed 0", {name: p for name, p in points.items() if p})
    grid = ", ".join(f"{rate:g}" for rate in part["rates"])
    missing = ", ".join(name for name in names("strategy") if name not in strategies)
    return f"""### {name}

Rates tried: {grid}; fedavg's best is {part["shared_rate"]:g}.{missing and f" Not run yet: {missing}."}

{table(_HEAD, [_row(strategy, strategies[strategy]) for strategy in order])}

![what each round loses](results/aggregation_{name}.svg)"""


def _row(name: str, own: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"`{name}`",
        f"{own['rate']:g}",
        _score(own["accuracy"]) + (f" ({own['num_failed']} failed)" if own["num_failed"] else ""),
        _score(own["accuracy_at_shared_rate"]),
        *(_number(own[key], ".1f", 1e-6) for key in ("bytes_up", "bytes_down")),
        _number(own["server_ms_round"], ".1f"),
        *(_number(own[key], ".1e") for key in ("lost_first", "lost_last")),
    )


def _score(accuracies: Sequence[float]) -> str:
    """Return mean and deviation in percent, and of how many seeds if not of all."""
    if not accuracies:
        return "-"
    scores = [100 * accuracy for accuracy in accuracies]
    few = f" ({len(scores)})" if len(scores) < len(SEEDS) else ""
    return f"{statistics.mean(scores):.1f} ± {statistics.pstdev(scores):.1f}{few}"


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:{form}}"


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
            if (value := found[name, steps, rate]["lost_first"]) is not None
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


def _swept_cell(result: Result) -> str:
    lost = result["lost_first"]
    return f"{100 * result['accuracy']:.1f}" + (f" ({lost:.1e})" if lost is not None else "")
