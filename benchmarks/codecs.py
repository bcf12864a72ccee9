"""How small and how fast is each codec, and how near its entropy bound is compeft?

    python -m benchmarks.codecs

Random normal changes of A and B tensors, half each. Sizes at 1 and at 50 million entries and densities 5, 10 and 20 %,
against n H(k/n) + k bits. Speeds at 50 million, on one thread, in one process in which all take turns, medians: MB of
float32 change a second, beside a copy in memory, zstd at level 1 and zlib at level 1 on the same bytes.
"""

import argparse
import math
import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
import torch

from benchmarks.jobs import table, write_results, write_section
from fedpeft import plugins
from fedpeft.codecs.base import Codec, Common
from fedpeft.codecs.chain import chained
from fedpeft.tensors import Tensors, raw

SIZES, DENSITIES = (1_000_000, 50_000_000), (0.05, 0.1, 0.2)
NUM_TENSORS = 50
ENCODE_AIM, DECODE_AIM, HEADER_AIM = 200, 400, 2048


@dataclass(frozen=True)
class Packer:
    """One way to pack, and to unpack again."""

    encode: Callable[[Tensors], Any]
    decode: Callable[[Any, Tensors], Any]
    unit: float = 1.0
    """Share of the tensors that it is given: the slow ones get a part, which their MB/s do not depend on."""


def changes(num_entries: int) -> tuple[Tensors, Common]:
    """Return normal changes, A and B in turn, and the roles that both sides know."""
    rng, size = np.random.default_rng(0), num_entries // NUM_TENSORS
    names = [f"m{index // 2}.{'AB'[index % 2]}" for index in range(NUM_TENSORS)]
    tensors = Tensors((name, torch.from_numpy(rng.standard_normal(size, dtype=np.float32))) for name in names)
    return tensors, Common(roles={name: name[-1] for name in names}, seed=0)


def made(*names: str, **options: Any) -> Codec:
    """Return a codec, or a chain of those named."""
    modules = [plugins.load("codec", name) for name in names]
    return chained([module.make(module.Options(**options)) for module in modules])


def size_rows(num_entries: int) -> list[dict[str, Any]]:
    """Return compeft's sizes against the entropy bound."""
    tensors, common = changes(num_entries)
    rows = []
    for density in DENSITIES:
        num_bytes = len(made("compeft", density=density).encode(tensors, common))
        entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
        bound = num_entries * (entropy + density) / 8
        rows.append(
            {
                "entries": num_entries,
                "density": density,
                "bytes": num_bytes,
                "bound_bytes": bound,
                "over_bound": num_bytes / bound - 1,
                "times_smaller": 4 * num_entries / num_bytes,
                "within": num_bytes <= 1.01 * bound + HEADER_AIM,
            }
        )
    return rows


def packers(common: Common) -> dict[str, Packer]:
    """Return every codec with its defaults, two chains, and what they stand beside."""

    def of(codec: Codec) -> Packer:
        return Packer(
            lambda tensors: codec.encode(tensors, common),
            lambda data, tensors: codec.decode(data, tensors.manifest(), common),
        )

    def flat(tensors: Tensors) -> bytes:
        return b"".join(map(raw, tensors.values()))

    def copied(tensors: Tensors) -> memoryview:
        return torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).numpy().data.cast("B")

    codecs = {name: of(made(name)) for name in plugins.names("codec")}
    chains = {"+".join(names): of(made(*names)) for names in (("top_k", "int8"), ("top_k", "bfloat16"))}
    return {
        "memcpy": Packer(copied, lambda data, _: np.array(data)),
        "zstd -1": Packer(
            lambda tensors: pyarrow.Codec("zstd", compression_level=1).compress(flat(tensors)),
            lambda data, tensors: pyarrow.Codec("zstd").decompress(data, 4 * tensors.num_elements),
            unit=0.2,
        ),
        "zlib -1": Packer(
            lambda tensors: zlib.compress(flat(tensors), 1), lambda data, _: zlib.decompress(data), unit=0.04
        ),
        **codecs,
        **chains,
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds it took and what came of it."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def speed_rows(num_entries: int, turns: int) -> list[dict[str, Any]]:
    """Return each packer's speeds, all taking turns."""
    tensors, common = changes(num_entries)
    seconds: dict[str, list[tuple[float, float]]] = {}
    sizes: dict[str, float] = {}
    for _ in range(turns):
        for name, packer in packers(common).items():
            given = tensors.select(list(tensors)[: max(1, round(packer.unit * NUM_TENSORS))])
            megabytes = 4e-6 * given.num_elements
            took, data = timed(lambda packer=packer, given=given: packer.encode(given))  # type: ignore[misc]
            back, _ = timed(lambda packer=packer, data=data, given=given: packer.decode(data, given))  # type: ignore[misc]
            seconds.setdefault(name, []).append((megabytes / took, megabytes / back))
            sizes[name] = 4 * given.num_elements / len(data)
    return [
        {
            "codec": name,
            "times_smaller": sizes[name],
            "encode": statistics.median(up for up, _ in turns_of),
            "decode": statistics.median(down for _, down in turns_of),
            "turns": [[round(up, 1), round(down, 1)] for up, down in turns_of],
        }
        for name, turns_of in seconds.items()
    ]


def section(sizes: list[dict[str, Any]], speeds: list[dict[str, Any]], num_entries: int, turns: int) -> str:
    """Return the section of docs/results.md."""
    size_table = table(
        ["entries", "density", "bytes", "entropy bound", "over it", "times smaller than float32", "within 1 % + 2 KB"],
        [
            [
                f"{row['entries']:,}",
                f"{row['density']:.0%}",
                f"{row['bytes']:,}",
                f"{row['bound_bytes']:,.0f}",
                f"{row['over_bound']:.3%}",
                f"{row['times_smaller']:.1f}",
                "yes" if row["within"] else "no",
            ]
            for row in sizes
        ],
    )
    speed_table = table(
        ["codec", "times smaller", "encode, MB/s", "decode, MB/s"],
        [[r["codec"], f"{r['times_smaller']:.2f}", f"{r['encode']:,.0f}", f"{r['decode']:,.0f}"] for r in speeds],
    )
    fast = next(row for row in speeds if row["codec"] == "compeft")
    met = "met" if fast["encode"] >= ENCODE_AIM and fast["decode"] >= DECODE_AIM else "not met"
    return f"""## Codecs: size and speed

Normal random changes in A and B, one scale and one cut each. The entropy bound is n H(k/n) + k bits: which entries are
kept, and their signs.

{size_table}

Speed in MB of float32 change a second: {num_entries:,} entries, one thread, medians of {turns} turns in one process,
all in turn (the slow general compressors on a part). Defaults; compeft, top_k and random_k keep 5 %. memcpy puts the
tensors' bytes together and copies them back. The aim for compeft, {ENCODE_AIM} MB/s to encode and {DECODE_AIM} to
decode, is {met}.

{speed_table}

Made by `python -m benchmarks.codecs`; every turn is in `docs/results/codecs.json`."""


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="times that each is measured")
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    sizes = [row for num_entries in SIZES for row in size_rows(num_entries)]
    speeds = speed_rows(SIZES[-1], turns)
    print(write_results("codecs", {"sizes": sizes, "speeds": speeds}))
    write_section("codecs", section(sizes, speeds, SIZES[-1], turns))


if __name__ == "__main__":
    main()
