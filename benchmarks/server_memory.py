"""How much memory does a round's aggregation take on the server, and does it grow with the number of clients?

    python -m benchmarks.server_memory

Every strategy with its default options, over an adapter of about a million parameters: prepare and accumulate each
update, then apply. Strategies that stream meet 10 and 1,000 clients, those that stack 10 and 50. Each measurement is a
process of its own. Two numbers are kept: the bytes of all tensors within the total before apply, which are exact, and
the peak of the resident set over the round above what it was before, which also has the update at hand, intermediate
tensors and the allocator in it. Linux only: the peak is read from /proc.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._memory import baseline, peak
from benchmarks.jobs import ROOT, run_jobs, table, write_results, write_section
from fedpeft import plugins, seeds
from fedpeft.adapters.base import Algebra, Slot
from fedpeft.strategies.base import ClientUpdate, Directive, Stack, Strategy
from fedpeft.tensors import Spec, Tensors

NUM_MODULES, WIDTH, RANK, CORE = 64, 1024, 8, 128
FEW, MANY_STREAMED, MANY_STACKED = 10, 1000, 50
MIB = 2**20


def slots_of(name: str) -> tuple[Slot, ...]:
    """Return the A/B pairs of square modules, or for fed_sb as many square cores; a million parameters either way."""
    if name == "fed_sb":
        return tuple(_slot(module, "core", (CORE, CORE), Algebra.LINEAR) for module in range(NUM_MODULES))
    shapes = {"A": (RANK, WIDTH), "B": (WIDTH, RANK)}
    return tuple(
        _slot(module, role, shape, Algebra.BILINEAR) for module in range(NUM_MODULES) for role, shape in shapes.items()
    )


def _slot(module: int, role: str, shape: tuple[int, int], algebra: Algebra) -> Slot:
    return Slot(name=f"{module}.{role}", shape=shape, algebra=algebra, group=str(module), role=role)


def drawn(specs: Iterable[Spec], size: float) -> Tensors:
    """Return Gaussian tensors of a manifest."""
    generator = seeds.generator(0, "server-memory")
    return Tensors((spec.name, size * torch.randn(spec.shape, generator=generator)) for spec in specs)


def held_bytes(value: Any) -> int:
    """Return the bytes behind all tensors that can be reached from a value; a storage counts whole, and once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _within(value)}
    return sum(storages.values())


def _within(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _within(inner)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for inner in value:
            yield from _within(inner)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _within(getattr(value, field.name))


def strategy_of(name: str) -> Strategy[Any]:
    """Return a strategy with its default options."""
    module = plugins.load("strategy", name)
    made: Strategy[Any] = module.make(module.Options())
    return made


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one strategy holds after so many clients, and the peak of a round above what was there before."""
    torch.set_num_threads(1)
    strategy, slots = strategy_of(job["name"]), slots_of(job["name"])
    strategy.check(slots)
    state = strategy.init(slots, drawn([slot.spec for slot in slots], 0.01))
    directive = strategy.directive(slots, state, round_number=1, client=0)
    change = drawn(directive.select(slots, strategy.uplink(slots)), 0.001)
    beside = drawn(strategy.beside(slots).up, 0.001)
    before, total = baseline(), strategy.start()
    for client in range(job["num_clients"]):
        update = _update(client, change, beside, directive)
        total = strategy.accumulate(total, strategy.prepare(slots, state, update))
    held = held_bytes(total)
    strategy.apply(slots, state, total)
    return {**job, "held_bytes": held, "peak_bytes": peak() - before, "adapter_bytes": held_bytes(state.adapter)}


def _update(client: int, change: Tensors, beside: Tensors, directive: Directive) -> ClientUpdate:
    """Return an update in memory of its own."""
    factor = 1.0 + 0.001 * client
    return ClientUpdate(
        client=client, delta=change * factor, beside=beside * factor, num_examples=client + 1, directive=directive
    )


def counts_of(name: str) -> tuple[int, int]:
    """Return few clients and many."""
    return FEW, MANY_STACKED if isinstance(strategy_of(name).start(), Stack) else MANY_STREAMED


def main() -> None:
    """Measure, and write docs/results/server_memory.json and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "server_memory.jsonl", help="what is done already")
    given = parser.parse_args()
    jobs = {
        f"{name} {count}": {"name": name, "num_clients": count}
        for name in plugins.names("strategy")
        for count in counts_of(name)
    }
    rows = run_jobs(measure, jobs, workers=given.workers, log=given.log)
    sizes = {"num_modules": NUM_MODULES, "width": WIDTH, "rank": RANK, "core": CORE}
    write_results("server_memory", {"sizes": sizes, "rounds": rows})
    write_section("server_memory", _section(rows))


def _section(rows: Sequence[Mapping[str, Any]]) -> str:
    pairs = [(few, many) for few, many in zip(rows[::2], rows[1::2], strict=True)]
    streamed = [pair for pair in pairs if pair[1]["num_clients"] == MANY_STREAMED]
    stacked = [pair for pair in pairs if pair[1]["num_clients"] == MANY_STACKED]
    constant = sum(few["held_bytes"] == many["held_bytes"] for few, many in streamed)
    return f"""## What a round holds on the server

An adapter of about a million parameters ({rows[0]["adapter_bytes"] / MIB:.1f} MiB in float32): {NUM_MODULES} modules of
{WIDTH} x {WIDTH} at rank {RANK}, for fed_sb {NUM_MODULES} cores of {CORE} x {CORE}. The total is the bytes of all its
tensors before apply; the peak is that of the process over accumulate and apply, above what it had before the round,
with one update at hand, intermediate tensors and what the allocator keeps, which differs from run to run (for median
at 50 clients between 368 and 470). MiB; each measurement is a fresh process. Made by
`python -m benchmarks.server_memory`; every number is in `docs/results/server_memory.json`.

Strategies that stream: the total is to the byte the same for {FEW} and {MANY_STREAMED} clients in {constant} of
{len(streamed)}.

{_table(streamed, FEW, MANY_STREAMED)}

Strategies that stack hold every update of the round until it ends, K adapters in float32. What fedex_lora and flora
make of it is a residual of each weight, {NUM_MODULES * WIDTH**2 * 4 // MIB} MiB of matrices that the state keeps.

{_table(stacked, FEW, MANY_STACKED)}"""


def _table(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], few: int, many: int) -> str:
    head = ("strategy", *(f"{what}, {count} clients" for what in ("total", "peak") for count in (few, many)))
    rows = [
        (pair[0]["name"], *(f"{side[key] / MIB:.1f}" for key in ("held_bytes", "peak_bytes") for side in pair))
        for pair in pairs
    ]
    return table(head, rows)


if __name__ == "__main__":
    main()
