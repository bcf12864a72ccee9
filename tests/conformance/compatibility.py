"""Which adapter goes with which strategy, asked of the code itself and written down as docs/compatibility.md.

python -m tests.conformance.compatibility    # after adding a plug-in
"""

import re
from pathlib import Path

from fedpeft import plugins
from fedpeft.adapters.base import GradientSupport
from fedpeft.errors import UnsupportedError
from fedpeft.training.fit import require_fit
from fedpeft.training.workbench import Workbench, assemble
from tests.conftest import needed, tiny

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
_HEAD = """# What goes with what

Made by `python -m tests.conformance.compatibility` from the plug-ins themselves, with default options; a test holds it
to them, and another runs every pair that is marked `+` for one round. A pair that is refused is refused before anything
is written, for the reason below its letter.

"""


_ROLES = re.compile(r" \(its roles: [^)]*\)")
"""What differs from adapter to adapter in a reason that is the same."""


_CLIENTS = 5


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
        return _ROLES.sub("", str(error)).replace("\n", " ")
    return None


def page() -> str:
    """Return docs/compatibility.md."""
    adapters, strategies = plugins.names("adapter"), plugins.names("strategy")
    benches = {adapter: attached(adapter) for adapter in adapters}
    found = {(a, s): refusal(benches[a], s) for a in adapters for s in strategies}
    letters = {reason: _letter(i) for i, reason in enumerate(dict.fromkeys(filter(None, found.values())))}
    rows = [[f"`{s}`", *(letters.get(found[a, s] or "", "+") for a in adapters)] for s in strategies]
    parts = [_HEAD, _table(["", *(f"`{a}`" for a in adapters)], rows)]
    parts += ["\n## Why a pair is refused\n\n", *(f"- **{letter}**: {reason}\n" for reason, letter in letters.items())]
    parts += ["\n## Gradients of single examples\n\n", _GRADIENTS, _table(["adapter", "by", "because"], _gradients())]
    return "".join(parts)


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
