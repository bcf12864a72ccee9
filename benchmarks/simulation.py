"""How fast a round of small clients is simulated: this library, a loop by hand, and Flower's runtime.

    python -m benchmarks.simulation

A BERT of two layers and 64 dimensions, 32 clients a round, four steps of eight short texts each. All sides train the
same adapters on the same examples in the same order, one thread a process:

- ``ours``: ``fedpeft simulate`` with so many worker processes, messages, checks, checkpoints and all;
- ``loop``: what one would write by hand on top of peft and torch, one client after the other, with plain averaging;
- ``flower``: the same two apps under Flower's simulation runtime.

A turn starts each side anew and takes the time of each round but the first, which pays for starting, encoding and
warming up; the sides take turns, so that the ratios mean more than the seconds.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs import write_results
from fedpeft import config, seeds
from fedpeft.config import Experiment
from fedpeft.data.batches import batch_indices
from fedpeft.engines import flower, inline
from fedpeft.report.export import read_slots
from fedpeft.report.run_directory import RunDirectory
from fedpeft.tensors import Tensors
from fedpeft.training.workbench import assemble

NUM_CLIENTS, NUM_STEPS, BATCH = 32, 4, 8
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
NUM_TRAIN, NUM_TEST, NUM_LABELS = 2048, 64, 4


def write_texts(folder: Path) -> None:
    """Write train.csv and test.csv: five words each, drawn by the label."""
    draw = random.Random(0)  # noqa: S311
    for name, number in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        labels = [draw.randrange(NUM_LABELS) for _ in range(number)]
        rows = [f"{' '.join(draw.choices(WORDS[2 * label : 2 * label + 4], k=5))},l{label}" for label in labels]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")


def experiment(folder: Path, out: Path, *, num_rounds: int, workers: int = 1) -> Experiment:
    """Return the federation; evaluated before the first round and after the last alone."""
    return config.parse({
        "name": "simulation",
        "seed": 1,
        "model": {
            "name": "tiny",
            "architecture": "bert",
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 128,
        },
        "data": {
            "name": "table",
            "path": str(folder / "train.csv"),
            "test_path": str(folder / "test.csv"),
            "text": "text",
            "label": "label",
        },
        "partition": {"name": "iid", "num_clients": NUM_CLIENTS},
        "task": {"name": "sequence_classification", "max_length": 32},
        "adapter": {"name": "lora", "rank": 4, "alpha": 8},
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "train": {"local_steps": NUM_STEPS, "batch_size": BATCH, "learning_rate": 1e-3},
        "rounds": {"num_rounds": num_rounds},
        "evaluate": {"every": num_rounds},
        "compute": {"num_threads": 1},
        "output": {"directory": str(out)},
        "simulation": {"workers": workers},
    })  # fmt: skip


def by_inline(folder: Path, out: Path, *, num_rounds: int, workers: int) -> tuple[list[float], Tensors]:
    """Return the seconds of each round but the first, and the adapter."""
    inline.simulate(experiment(folder, out, num_rounds=num_rounds, workers=workers))
    return _recorded(out), read_slots(out / "adapter")


def by_flower(folder: Path, out: Path, *, num_rounds: int) -> tuple[list[float], Tensors]:
    """Return the same under Flower's simulation runtime, which trains as many clients at once as there are cores."""
    flower.simulate(experiment(folder, out, num_rounds=num_rounds))
    return _recorded(out), read_slots(out / "adapter")


def _recorded(out: Path) -> list[float]:
    """Evaluation is no part of it, nor is the round that pays for the start."""
    return [record.seconds["clients"] + record.seconds["aggregate"] for record in RunDirectory(out).records()[2:]]


def by_hand(folder: Path, out: Path, *, num_rounds: int) -> tuple[list[float], Tensors]:
    """Return the same for a plain loop over clients: set the adapter, train, take it back, average."""
    settings = experiment(folder, out, num_rounds=num_rounds)
    bench = assemble(settings)
    model, task = bench.adapted.attached.model, bench.adapted.task
    parameters = bench.adapted.attached.parameters()
    everyone = [bench.client_examples(client)[0] for client in range(NUM_CLIENTS)]
    state = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    seconds = []
    for round_number in range(1, num_rounds + 1):
        began = time.perf_counter()
        total = {name: torch.zeros_like(value) for name, value in state.items()}
        for client, examples in enumerate(everyone):
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(state[name])
            optimizer = torch.optim.AdamW(parameters.values(), lr=settings.train.learning_rate, weight_decay=0.0)
            seed = seeds.derive(settings.seed, "train", round_number, client)
            model.train()
            for rows in batch_indices(len(examples), BATCH, seed=seed, epochs=None, steps=NUM_STEPS):
                batch = task.collate([examples[row] for row in rows])
                loss = model(**batch).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for name, parameter in parameters.items():
                total[name] += parameter.detach() / NUM_CLIENTS
        state = total
        seconds.append(time.perf_counter() - began)
    return seconds[1:], Tensors(state)


def measure(turns: int, num_rounds: int, *, with_flower: bool) -> dict[str, Any]:
    """Return the rounds' seconds of every side, and how far each adapter is from the loop's."""
    seconds: dict[str, list[float]] = {}
    adapters: dict[str, Tensors] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_texts(folder)
        for turn in range(turns):
            for name, run in _sides(folder, turn, num_rounds, with_flower=with_flower).items():
                taken, adapters[name] = run()
                seconds.setdefault(name, []).extend(round(each, 4) for each in taken)
                print(turn, name, round(statistics.median(taken), 3), flush=True)
    largest = {
        name: max(float((adapter[slot] - adapters["loop"][slot]).abs().max()) for slot in adapter)
        for name, adapter in adapters.items()
    }
    digests = {name: adapter.digest() for name, adapter in adapters.items()}
    return {"seconds": seconds, "largest_difference_from_loop": largest, "digests": digests}


def _sides(
    folder: Path, turn: int, num_rounds: int, *, with_flower: bool
) -> dict[str, Callable[[], tuple[list[float], Tensors]]]:
    sides: dict[str, Callable[[], tuple[list[float], Tensors]]] = {
        "loop": lambda: by_hand(folder, folder / f"loop{turn}", num_rounds=num_rounds),
        "ours, 1": lambda: by_inline(folder, folder / f"one{turn}", num_rounds=num_rounds, workers=1),
        "ours, 2": lambda: by_inline(folder, folder / f"two{turn}", num_rounds=num_rounds, workers=2),
    }
    if with_flower:
        sides["flower"] = lambda: by_flower(folder, folder / f"flower{turn}", num_rounds=num_rounds)
    return sides


def compared(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return how many times as long as ours each side takes, from medians."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {f"{name} / ours, 1": value / median["ours, 1"] for name, value in median.items()}


def main() -> None:
    """Measure, and write docs/results/simulation.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="times that each side is started")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of a run; the first does not count")
    parser.add_argument("--without-flower", action="store_true", help="leave Flower's runtime out")
    parser.add_argument("--dry", action="store_true", help="print and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(arguments.turns, arguments.rounds, with_flower=not arguments.without_flower)
    sizes = {"num_clients": NUM_CLIENTS, "num_steps": NUM_STEPS, "batch_size": BATCH, "num_threads": 1}
    medians = {name: round(statistics.median(values), 4) for name, values in results["seconds"].items()}
    whole = {"sizes": sizes, "medians": medians, "ratios": compared(results["seconds"]), **results}
    print(
        json.dumps(
            {key: whole[key] for key in ("medians", "ratios", "largest_difference_from_loop", "digests")}, indent=1
        )
    )
    if not arguments.dry:
        write_results("simulation", whole)


if __name__ == "__main__":
    main()
