"""Which adapter goes with which strategy, asked of the code itself and written down as docs/compatibility.md.

python -m tests.conformance.compatibility    # after adding a plug-in
"""

import itertools
import re
from pathlib import Path
from typing import Any

from fedpeft import plugins
from fedpeft.adapters.base import GradientSupport
from fedpeft.errors import InputError, UnsupportedError
from fedpeft.training.fit import require_fit
from fedpeft.training.private_fit import require_private
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import needed, tiny

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
_HEAD = """# What goes with what

Made by `python -m tests.conformance.compatibility` from the plug-ins themselves, with default options; a test holds it
to them, and another runs every pair that is marked `+` for one round. A pair that is refused is refused before anything
is written, for the reason below its letter.

An `e` after the `+`: the pair goes with privacy of examples (`privacy.unit = "example"`). A `c`: with privacy of
clients (`privacy.unit = "client"`). Both with `weighting = "uniform"` where the strategy weighs. Without the mark that
[privacy] table is refused, for the reason further below.

"""


_ROLES = re.compile(r" \(its roles: [^)]*\)")
"""What differs from adapter to adapter in a reason that is the same."""


_CLIENTS = 5
_UNITS: dict[str, dict[str, Any]] = {
    "e": {"unit": "example", "epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "sample_rate": 0.1},
    "c": {"unit": "client", "epsilon": 8.0, "delta": 1e-5, "clip": 1.0},
}


def attached(adapter: str) -> Workbench:
    """Return the tiny experiment with the adapter, under plain averaging."""
    return assemble(tiny(**needed("fedavg", adapter={"name": adapter}, partition={"num_clients": _CLIENTS})))


def refusal(bench: Workbench, strategy: str) -> str | None:
    """Return why the strategy refuses the adapter; None where it does not."""
    name = bench.experiment.adapter.name
    experiment = tiny(**needed(strategy, adapter={"name": name}, partition={"num_clients": _CLIENTS}))
    try:
        require_fit(experiment, experiment.strategy.build(), bench.adapted, num_clients=_CLIENTS)
    except UnsupportedError as error:
        return told(error)
    return None


def private_refusal(bench: Workbench, strategy: str, mark: str) -> str | None:
    """Return why a pair that is accepted is refused with privacy; None where it is not."""
    experiment = tiny(**private(strategy, bench.experiment.adapter.name, _UNITS[mark]))
    try:
        require_private(
            experiment,
            experiment.privacy,  # type: ignore[arg-type]
            experiment.strategy.build(),
            bench.adapted,
            num_clients=_CLIENTS,
        )
    except InputError as error:
        return str(error).replace(f"strategy {strategy!r}", "it").replace("\n", " ")
    return None


def private(strategy: str, adapter: str, table: dict[str, Any]) -> dict[str, Any]:
    """Return the tiny experiment's changes for a pair with a [privacy] table."""
    weighs = "weighting" in plugins.load("strategy", strategy).Options.model_fields
    uniform = {"strategy": {"name": strategy, "weighting": "uniform"}} if weighs else {}
    changes = needed(strategy, adapter={"name": adapter}, partition={"num_clients": _CLIENTS}, privacy=table)
    return {**changes, **uniform}


def accepted(mark: str = "") -> list[tuple[str, str]]:
    """Return the (adapter, strategy) that the page accepts, with a kind of privacy or without any."""
    return [pair for pair, cell in _cells().items() if cell.startswith("+") and mark in cell]


def refused() -> dict[tuple[str, str], str]:
    """Return the (adapter, strategy) that the page refuses -> its reason."""
    letters = dict(re.findall(r"^- \*\*(\w+)\*\*: (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    return {pair: letters[cell] for pair, cell in _cells().items() if not cell.startswith("+")}


def _cells() -> dict[tuple[str, str], str]:
    """Return (adapter, strategy) -> what the page's first table says."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("|"))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    head, _, *rows = ([cell.strip(" `") for cell in line.strip("|").split("|")] for line in table)
    return {(adapter, row[0]): cell for row in rows for adapter, cell in zip(head[1:], row[1:], strict=True)}


def told(error: UnsupportedError) -> str:
    """Return a refusal as the page has it: without what differs from adapter to adapter."""
    return _ROLES.sub("", str(error)).replace("\n", " ")


def page() -> str:
    """Return docs/compatibility.md."""
    adapters, strategies = plugins.names("adapter"), plugins.names("strategy")
    benches = {adapter: attached(adapter) for adapter in adapters}
    found = {(a, s): refusal(benches[a], s) for a in adapters for s in strategies}
    bare = {
        (a, s, mark): private_refusal(benches[a], s, mark)
        for (a, s), reason in found.items()
        if reason is None
        for mark in _UNITS
    }
    letters = {reason: _letter(i) for i, reason in enumerate(dict.fromkeys(filter(None, found.values())))}
    marks = {(a, s): "+" + "".join(m for m in _UNITS if bare.get((a, s, m), "") is None) for a, s in found}
    rows = [[f"`{s}`", *(letters.get(found[a, s] or "", marks[a, s]) for a in adapters)] for s in strategies]
    parts = [_HEAD, _table(["", *(f"`{a}`" for a in adapters)], rows)]
    parts += ["\n## Why a pair is refused\n\n", *(f"- **{letter}**: {reason}\n" for reason, letter in letters.items())]
    parts += ["\n## Why privacy is refused\n\n", *_private_reasons(bare)]
    parts += ["\n## Gradients of single examples\n\n", _GRADIENTS, _table(["adapter", "by", "because"], _gradients())]
    return "".join(parts)


def _private_reasons(bare: dict[tuple[str, str, str], str | None]) -> list[str]:
    """Return one line for each mark and reason, with whom it concerns."""
    reasons = dict.fromkeys((mark, reason) for (_, _, mark), reason in bare.items() if reason)
    whom = {key: dict.fromkeys(s for (_, s, mark), reason in bare.items() if (mark, reason) == key) for key in reasons}
    return [
        f"- **{mark}** with {', '.join(f'`{s}`' for s in sorted(whom[mark, reason]))}: {reason}\n"
        for mark, reason in sorted(reasons)
    ]


_GRADIENTS = (
    "Example-level privacy clips the gradient of each example. How it is had is the adapter's matter, whatever the "
    "strategy.\n\n"
)


def _gradients() -> list[list[str]]:
    rows = []
    for name in plugins.names("adapter"):
        module = plugins.load("adapter", name)
        support: GradientSupport = module.make(module.Options()).gradients()
        rows.append([f"`{name}`", support.by, support.reason or "-"])
    return rows


def _letter(index: int) -> str:
    """Return a, b, ..., z, aa, ab, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
