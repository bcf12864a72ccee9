"""The table of accuracy against bytes: numbers by hand, and what was not run is said."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import bandwidth
from benchmarks.bandwidth_report import section
from fedpeft.codecs.chain import chained


def result(arm: str, seed: int, accuracy: float, total: int, curve: list[list[float]]) -> dict[str, Any]:
    sizes = {"bytes_up": total // 2, "bytes_down": total - total // 2}
    return {"dataset": "d", "arm": arm, "seed": seed, "accuracy": accuracy, **sizes, "curve": curve}


RESULTS = [
    result("float32", 1, 0.80, 1000, [[0, 0.5], [500, 0.796], [1000, 0.80]]),
    result("float32", 2, 0.82, 1000, [[0, 0.5], [500, 0.7], [1000, 0.82]]),
    result("c", 1, 0.79, 20, [[0, 0.5], [10, 0.6], [20, 0.79]]),
    result("e", 2, 0.83, 10, [[0, 0.5], [5, 0.816], [10, 0.83]]),
]


@pytest.mark.parametrize(
    "row",
    [
        "| d | float32 | 2 | 81.0 ± 1.0 | 0.0 ± 0.0 | 500 | 500 | 1.0x | 1.0x |",
        "| d | c | 1 | 79.0 ± 0.0 | 1.0 ± 0.0 | 10 | 10 | 50.0x | - |",
        "| d | e | 1 | 83.0 ± 0.0 | -1.0 ± 0.0 | 5 | 5 | 100.0x | 200.0x |",
        "| d | g | 0 | not measured yet |  |  |  |  |  |",
    ],
)
def test_a_row_is_paired_with_float32_of_its_seed(row: str) -> None:
    assert row in section(RESULTS, datasets=["d"], arms=["float32", "c", "e", "g"], every=1).splitlines()


def test_every_arm_is_a_valid_experiment_and_the_claim_s_is_sparse_both_ways() -> None:
    hashes = set()
    for dataset in bandwidth.DATASETS:
        for arm in bandwidth.ARMS:
            hashes.add(bandwidth.experiment(bandwidth.Job(dataset, arm, 1), Path("run")).hash)
    claimed = bandwidth.experiment(bandwidth.Job("clinc150", "compeft both ways fed back", 1), Path("run"))

    assert len(hashes) == len(bandwidth.DATASETS) * len(bandwidth.ARMS)
    assert chained(claimed.codec_down.build()).changes_only
    assert claimed.feedback.down
