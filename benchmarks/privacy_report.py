"""The section of docs/results.md that benchmarks/privacy.py makes, and its pictures; of what was run, and no more."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.drawing import draw
from benchmarks.jobs import table

__all__ = ["section"]

Result = Mapping[str, Any]
Part = Mapping[str, Sequence[Result]]

_NAMES = {"fedavg": "LoRA", "ffa_lora": "FFA-LoRA", "dylora": "DyLoRA"}
_INTRODUCTION = """## What privacy costs

Accuracy in percent, mean and standard deviation over seeds (how many). *Rate*: the best of the grid, which is one for
all methods, on another seed and validation examples; *grid* is every rate's accuracy there, so that what a wrong rate
costs can be seen. The search itself is not charged. Noise is reproducible, epsilon by PRV. Made by
`python -m benchmarks.privacy`; every run is a line of `docs/results/privacy.jsonl`, from which it goes on. A dash is
what has not been run yet; of one seed no order is claimed."""


_CAUTION = {
    "clinc150_client": """

**This setting says nothing of ranks.** Its base has seen the same intents, so that a new head is nearly all there is to
learn: with the adapter switched off (alpha 0.001) it comes to 71.7 on validation examples, with LoRA of rank 8 to 71.8
(one seed, no privacy). What is compared is the cost of cut and noise.

Bases that have not seen the intents were tried and not taken up, with a smaller transformer (width 64) and one run a
setting, no privacy: one that learned the domains of all utterances comes to 8.4 on 150 intents at rate 0.3, and to
chance at 1; one that learned five other domains tells five new ones at 28.8 with FFA-LoRA and at 28.9 without (alpha
0.001) at rate 0.3, at 20.2 and 30.7 at rate 1, after 10 rounds of 5 steps. Both were trained too little to say which
method is better."""
}


def section(parts: Mapping[str, Part]) -> str:
    """Return the tables; write the pictures beside the results."""
    told = {"example": _example, "client": _client, "noise": _noise}
    bodies = [told[name.split("_")[-1]](name, part) for name, part in parts.items() if part.get("runs")]
    return "\n\n".join([_INTRODUCTION, *bodies])


def _example(name: str, part: Part) -> str:
    """LoRA beside FFA-LoRA at each budget."""
    cells = _cells(part["tuning"])
    rows = [
        (_budget(key), _NAMES[key[0]], key[1], _rate(part, key), _score(_of(part["runs"], key)), *_spread(tried))
        for key, tried in sorted(cells.items(), key=lambda item: (-(item[0][2] or 1e9), item[0][1], item[0][0]))
    ]
    rates = _grid(part["tuning"])
    for rank in sorted({key[1] for key in cells}):
        series = {
            f"{_NAMES[key[0]]}, {_budget(key)}": [(float(at), 100 * r["accuracy"]) for at, r in enumerate(tried)]
            for key, tried in cells.items()
            if key[1] == rank and len(tried) == len(rates)
        }
        draw(f"privacy_{name}_{rank}", f"accuracy by rate, rank {rank}", series, across="rate")
    pictures = "\n".join(f"![accuracy by rate]({_picture(name, rank)})" for rank in sorted({key[1] for key in cells}))
    return f"""### {name}: LoRA and FFA-LoRA, example-level

Three clients (Dirichlet 0.5), rates tried: {", ".join(f"{rate:g}" for rate in rates)} (in the pictures 0, 1, ...).
*Worst*: the lowest of the grid; *3 x*: what is lost from the best rate of the grid to the next one.

{table(("epsilon", "method", "rank", "rate", "accuracy", "grid", "worst", "3 x"), rows)}

{pictures}"""


def _client(name: str, part: Part) -> str:
    """DP-DyLoRA beside fixed ranks, and its rank curve."""
    rows = []
    for key in _cells(part["runs"]):
        private, free = _of(part["runs"], key), _of(part["free"], (*key[:2], None, None, None))
        lost = _lost(private, free)
        rate = _rate(part, key)
        rows.append((_NAMES[key[0]], key[1], rate, _score(private), _score(free), lost, _megabytes(private)))
    curves = {
        label: _curve(results)
        for label, results in (("epsilon 2", _of_dylora(part["runs"])), ("no privacy", _of_dylora(part["free"])))
        if results
    }
    ranks = [f"{rank:g}" for rank, _ in next(iter(curves.values()), [])]
    drawn = {label: [(float(at), value) for at, (_, value) in enumerate(line)] for label, line in curves.items()}
    draw(f"privacy_{name}", "one DyLoRA adapter cut to its first ranks", drawn, across="log2 r")
    return f"""### {name}: DP-DyLoRA and fixed ranks, client-level

Ten clients, all drawn, with the noise of 1,000,000 clients and a cohort of 10,000 at epsilon 2, delta 5e-7: simulated
at 10, valid at 10,000 of 1,000,000. Without privacy: the same rate and seeds, neither cut nor noise. DyLoRA is scored
at its full rank; MB is what all clients send.{_CAUTION.get(name, "")}

{table(("method", "rank", "rate", "epsilon 2", "no privacy", "lost", "MB up"), rows)}

One DyLoRA adapter at each rank:

{table(("", *ranks), [(label, *(f"{value:.1f}" for _, value in line)) for label, line in curves.items()])}

![accuracy by rank]({_picture(name)}){_sizes(part)}"""


def _sizes(part: Part) -> str:
    """Return the table of smaller federations: what DyLoRA loses to itself without privacy."""
    if not part.get("smaller"):
        return ""
    free = {result["seed"]: result["accuracy"] for result in _of_dylora(part["free"])}
    all_sizes = [*part["smaller"], *_of_dylora(part["runs"])]
    rows = []
    for cohort in sorted({result["cohort"] for result in all_sizes}):
        results = [result for result in all_sizes if result["cohort"] == cohort and result["seed"] in free]
        lost = [100 * (free[result["seed"]] - result["accuracy"]) for result in results]
        sizes = f"{100 * cohort:,}", f"{cohort:,}", f"{results[0]['noise_multiplier']:.2f}"
        rows.append((*sizes, _score(results), f"{statistics.mean(lost):.1f}"))
    return f"""

DP-DyLoRA with the noise of smaller federations, one client in a hundred drawn, at its full rank and the same rate:

{table(("population", "cohort", "noise multiplier", "accuracy", "lost to no privacy"), rows)}"""


def _noise(name: str, part: Part) -> str:
    """Return the sweep of noise x rank, at each method's best rate of those tried."""
    cells = _cells(part["runs"])
    best = {key: max(100 * result["accuracy"] for result in tried) for key, tried in cells.items()}
    pairs = sorted({(key[3], key[1]) for key in cells})
    rows = []
    for noise, rank in pairs:
        keys = [(method, rank, None, noise, None) for method in ("fedavg", "ffa_lora")]
        if all(key in cells for key in keys):
            spreads = [_grid_of(cells[key]) for key in keys]
            found = [best[key] for key in keys]
            rows.append((f"{noise:g}", rank, *(f"{f:.1f}" for f in found), f"{found[1] - found[0]:+.1f}", *spreads))
    rates = ", ".join(f"{rate:g}" for rate in _grid(part["runs"]))
    return f"""### {name}: where the noise in the product counts

With noise on both factors the product carries a term that grows with the rank and the fourth power of the noise's
deviation, and with one frozen it does not. Example-level, as above, noise multiplier x rank, seed 0 on held-out
examples, best of the rates {rates}, and all of them.

{table(("noise", "rank", "LoRA", "FFA-LoRA", "FFA - LoRA", "LoRA, all", "FFA-LoRA, all"), rows)}"""


Key = tuple[str, int, float | None, float | None, int | None]


def _key(result: Result) -> Key:
    return (result["strategy"], result["rank"], result["epsilon"], result["noise"], result["cohort"])


def _cells(results: Sequence[Result]) -> dict[Key, list[Result]]:
    found: dict[Key, list[Result]] = {}
    for result in results:
        found.setdefault(_key(result), []).append(result)
    return found


def _of(results: Sequence[Result], key: Key) -> list[Result]:
    return [result for result in results if _key(result) == key]


def _of_dylora(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result["strategy"] == "dylora"]


def _curve(results: Sequence[Result]) -> list[tuple[float, float]]:
    ranks = list(results[0]["curve"])
    return [(float(rank), statistics.mean(100 * r["curve"][rank] for r in results)) for rank in ranks]


def _grid(results: Sequence[Result]) -> list[float]:
    return sorted({float(result["rate"]) for result in results})


def _grid_of(tried: Sequence[Result]) -> str:
    return " / ".join(f"{100 * result['accuracy']:.1f}" for result in sorted(tried, key=lambda r: r["rate"]))


def _spread(tried: Sequence[Result]) -> tuple[str, str, str]:
    """Return all of the grid, its worst, and what is lost from its best to the next rate."""
    ordered = [100 * result["accuracy"] for result in sorted(tried, key=lambda result: result["rate"])]
    at = ordered.index(max(ordered))
    beyond = f"{ordered[at] - ordered[at + 1]:.1f}" if at + 1 < len(ordered) else "-"
    return _grid_of(tried), f"{min(ordered):.1f}", beyond


def _budget(key: Key) -> str:
    return "none" if key[2] is None else f"{key[2]:g}"


def _rate(part: Part, key: Key) -> str:
    found = _of(part["runs"], key)
    return f"{found[0]['rate']:g}" if found else "-"


def _score(results: Sequence[Result]) -> str:
    if not results:
        return "-"
    scores = [100 * float(result["accuracy"]) for result in results]
    failed = sum("failed" in result for result in results)
    told = f"{statistics.mean(scores):.1f} ± {statistics.pstdev(scores):.1f} ({len(scores)})"
    return told + (f", {failed} failed" if failed else "")


def _lost(private: Sequence[Result], free: Sequence[Result]) -> str:
    without = {result["seed"]: result["accuracy"] for result in free}
    both = [100 * (without[r["seed"]] - r["accuracy"]) for r in private if r["seed"] in without]
    return f"{statistics.mean(both):.1f}" if both else "-"


def _megabytes(results: Sequence[Result]) -> str:
    known = [result["bytes_up"] for result in results if "bytes_up" in result]
    return f"{statistics.mean(known) / 1e6:.1f}" if known else "-"


def _picture(name: str, rank: int | None = None) -> str:
    return f"results/privacy_{name}{'' if rank is None else f'_{rank}'}.svg"
