"""What a round's line says of bytes: what was sent, what it would be as float32, and what it could be at best."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fedpeft.codecs.base import Common
from fedpeft.codecs.compeft import ComPEFT, Options
from fedpeft.codecs.top_k import TopK
from fedpeft.engines.inline import simulate
from fedpeft.rounds import exchange
from fedpeft.tensors import Tensors
from fedpeft.training.workbench import assemble
from tests.conftest import tiny
from tests.e2e.test_inline import lines


@pytest.mark.parametrize("codec", ["none", "compeft", "int8", "top_k"])
def test_bytes_are_those_of_the_records_that_travelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    seen: list[int] = []

    def counted(record: RecordDict) -> int:
        config, arrays = record["fedpeft.header"], record["fedpeft.body"]
        seen.append(sum(len(bytes(value)) for value in config.values()) + len(arrays["fedpeft.body"].data))
        return seen[-1]

    monkeypatch.setattr(exchange, "size", counted)
    settings = tiny(tmp_path / "run", codec={"name": codec}, rounds={"num_rounds": 1})
    simulate(settings)
    row, floats = lines(tmp_path / "run")[1], assemble(settings).adapted.initial.num_elements

    assert row["bytes_up"] + row["bytes_down"] == sum(seen)
    assert row["bytes_up_fp32"] == row["bytes_down_fp32"] == 3 * 4 * floats
    if codec in ("none", "int8"):
        assert row["bytes_up_bound"] is None
    else:
        assert 0 < row["bytes_up_bound"] < row["bytes_up"]


@pytest.mark.parametrize(("codec", "each", "shared"), [(ComPEFT(Options(density=0.1)), 1, 32), (TopK(), 32, 0)])
def test_the_bound_is_the_formula_and_the_body_is_near_it(codec: Any, each: int, shared: int) -> None:
    tensors = Tensors(
        {"A": torch.randn(200, 500, generator=torch.Generator().manual_seed(1)), "x": torch.randn(90_000)}
    )
    common = Common(roles={"A": "A"})
    body = codec.encode(tensors, common)
    arrived = codec.decode(body, tensors.manifest(), common)
    bits = 0.0
    for tensor in arrived.values():
        n, k = tensor.numel(), int(np.count_nonzero(tensor.numpy()))
        bits += -n * (k / n * math.log2(k / n) + (1 - k / n) * math.log2(1 - k / n)) + each * k + shared

    assert codec.entropy_bits(arrived, common) == pytest.approx(bits, rel=1e-9)
    assert bits / 8 < len(body) < 1.01 * bits / 8 + 200
