"""How long is the server's step where the product of A/B pairs is repaired or factored anew?

    python -m benchmarks.aggregation_speed

64 modules of 4096 x 4096, rank 16, ten clients with random deltas that are drawn as they are needed. What counts are
ratios within one process, both sides taking turns, on one thread: lora_fair beside plain averaging of the factors; a
dense solver of LoRA-FAIR's cosine objective, measured for a few steps on one module and multiplied up, beside
lora_fair; the dense SVD of one module's mean update beside flexlora, which goes by QR cores.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from benchmarks.jobs import table, write_results, write_section
from fedpeft import plugins, seeds
from fedpeft.adapters.base import Algebra, Slot
from fedpeft.strategies.base import ClientUpdate, State, Strategy
from fedpeft.tensors import Tensors

WIDTH, RANK, NUM_CLIENTS, NUM_MODULES = 4096, 16, 10, 64
DENSE_STEPS, MEASURED_STEPS = 1000, 3

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds it took and what came of it."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def slots_of(num_modules: int) -> tuple[Slot, ...]:
    """Return the A/B pairs of that many square modules."""
    shapes = {"A": (RANK, WIDTH), "B": (WIDTH, RANK)}
    return tuple(
        Slot(name=f"{module}.{role}", shape=shape, algebra=Algebra.BILINEAR, group=str(module), role=role)
        for module in range(num_modules)
        for role, shape in shapes.items()
    )


def drawn(slots: tuple[Slot, ...], size: float, *purpose: str | int) -> Tensors:
    """Return Gaussian tensors in the slots; the entries of a factor of unit rows are of size 1 / sqrt(width)."""
    generator = seeds.generator(0, *purpose)
    return Tensors((slot.name, size * WIDTH**-0.5 * torch.randn(slot.shape, generator=generator)) for slot in slots)


def step(name: str, slots: tuple[Slot, ...]) -> float:
    """Return the seconds of one round's arithmetic, every accumulate and apply; drawing the updates does not count."""
    module = plugins.load("strategy", name)
    strategy: Strategy[Any] = module.make(module.Options())
    state, total, seconds = State(adapter=drawn(slots, 1.0, "adapter")), strategy.start(), 0.0
    for client in range(NUM_CLIENTS):
        update = ClientUpdate(client=client, delta=drawn(slots, 0.1, "delta", client), num_examples=client + 1)
        spent, total = timed(lambda total=total, update=update: strategy.accumulate(total, update))  # type: ignore[misc]
        seconds += spent
    return seconds + timed(lambda: strategy.apply(slots, state, total))[0]


def mean_product() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the dense mean update of one module (d_out, d_in), and the mean factors B and A, float32."""
    slots = slots_of(1)
    start = drawn(slots, 1.0, "adapter")
    clients = [start + drawn(slots, 0.1, "delta", client) for client in range(NUM_CLIENTS)]
    shares = [(client + 1) / sum(range(1, NUM_CLIENTS + 1)) for client in range(NUM_CLIENTS)]
    dense = torch.zeros(WIDTH, WIDTH)
    for share, client in zip(shares, clients, strict=True):
        dense.addmm_(client["0.B"], client["0.A"], alpha=share)
    b, a = (
        torch.stack([share * client[name] for share, client in zip(shares, clients, strict=True)]).sum(dim=0)
        for name in ("0.B", "0.A")
    )
    return dense, b, a


def dense_solver(num_steps: int) -> float:
    """Return the seconds of one gradient step on one module, with the products as matrices, as automatic gradients."""
    dense, b, a = mean_product()
    change = torch.zeros_like(b, requires_grad=True)
    optimizer = torch.optim.SGD([change], lr=0.01)

    def descend() -> None:
        for _ in range(num_steps):
            optimizer.zero_grad()
            cosine = torch.nn.functional.cosine_similarity(dense.flatten(), ((b + change) @ a).flatten(), dim=0)
            (1 - cosine + 0.01 * change.square().sum()).backward()
            optimizer.step()

    return timed(descend)[0] / num_steps


def dense_svd() -> float:
    """Return the seconds of the singular value decomposition of one module's mean update, as a float32 matrix."""
    dense = mean_product()[0]
    return timed(lambda: torch.linalg.svd(dense))[0]


def measure(repeats: int) -> dict[str, Any]:
    """Return the seconds of every measurement, in the order of their turns."""
    seconds: dict[str, list[float]] = {
        name: [] for name in ("fedavg", "lora_fair", "dense_step", "flexlora_one", "flexlora", "dense_svd")
    }
    for turn in range(repeats):
        turns: dict[str, Callable[[], float]] = {
            "fedavg": lambda: step("fedavg", slots_of(NUM_MODULES)),
            "lora_fair": lambda: step("lora_fair", slots_of(NUM_MODULES)),
            "dense_step": lambda: dense_solver(MEASURED_STEPS),
            "flexlora_one": lambda: step("flexlora", slots_of(1)),
        }
        if turn == repeats // 2:
            turns["flexlora"] = lambda: step("flexlora", slots_of(NUM_MODULES))
            turns["dense_svd"] = dense_svd
        for name, work in turns.items():
            seconds[name].append(round(work(), 4))
            print(name, seconds[name][-1], flush=True)
    return seconds


def compared(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the ratios that are aimed at, from medians."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    solver = median["dense_step"] * DENSE_STEPS * NUM_MODULES
    return {
        "lora_fair_over_fedavg": median["lora_fair"] / median["fedavg"],
        "lora_fair_beyond_twice_fedavg_seconds": median["lora_fair"] - 2 * median["fedavg"],
        "dense_solver_over_lora_fair": solver / median["lora_fair"],
        "dense_svd_over_flexlora": median["dense_svd"] / median["flexlora_one"],
    }


def main() -> None:
    """Measure, and write docs/results/aggregation_speed.json and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns of every measurement but the two long ones")
    torch.set_num_threads(1)
    seconds = measure(parser.parse_args().repeats)
    ratios = compared(seconds)
    sizes = {"width": WIDTH, "rank": RANK, "num_clients": NUM_CLIENTS, "num_modules": NUM_MODULES, "num_threads": 1}
    write_results("aggregation_speed", {"sizes": sizes, "seconds": seconds, "ratios": ratios})
    write_section("aggregation_speed", _section(seconds, ratios))


def _section(seconds: dict[str, list[float]], ratios: dict[str, float]) -> str:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    beyond = ratios["lora_fair_beyond_twice_fedavg_seconds"]
    met = (beyond <= 0.5, ratios["dense_solver_over_lora_fair"] >= 100, ratios["dense_svd_over_flexlora"] >= 50)
    rows = [
        (
            "lora_fair (ridge), all modules",
            f"{median['lora_fair']:.2f} s",
            f"plain averaging of the factors, {median['fedavg']:.2f} s",
            f"{ratios['lora_fair_over_fedavg']:.2f} x, {beyond:+.2f} s of twice",
            "at most 2 x + 0.5 s",
        ),
        (
            "lora_fair (ridge), all modules",
            f"{median['lora_fair']:.2f} s",
            f"dense cosine descent, {DENSE_STEPS} x {NUM_MODULES} x {median['dense_step']:.3f} s (extrapolated)",
            f"{ratios['dense_solver_over_lora_fair']:.0f} x faster",
            "at least 100 x",
        ),
        (
            "flexlora, one module",
            f"{median['flexlora_one']:.2f} s",
            f"dense float32 SVD, {median['dense_svd']:.1f} s (once)",
            f"{ratios['dense_svd_over_flexlora']:.0f} x faster",
            "at least 50 x",
        ),
    ]
    head = ("server step", "took", "beside", "ratio", "aim", "met")
    marked = [(*row, "yes" if good else "no") for row, good in zip(rows, met, strict=True)]
    return f"""## The server's step where the product counts

{NUM_MODULES} modules of {WIDTH} x {WIDTH}, rank {RANK}, {NUM_CLIENTS} clients, one thread; medians of
{len(seconds["fedavg"])} turns in one process, both sides in turn, so that the ratios mean more than the seconds. A step
is every accumulate and apply. All of flexlora's modules took {median["flexlora"]:.1f} s. Made by
`python -m benchmarks.aggregation_speed`; every turn is in `docs/results/aggregation_speed.json`.

{table(head, marked)}"""


if __name__ == "__main__":
    main()
