"""A small frozen base for CLINC150 that has seen neither the intents nor the domains that are federated.

It learns the intents of five domains, which are public; the other five are the federation's. So a new head on what it
computes is not all there is to learn, and an adapter has work to do.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.intents import Base, prepare

__all__ = ["BASE", "prepare_unseen"]

BASE = Base(public_share=1.0, hidden_size=64, intermediate_size=128, max_length=18, num_steps=1500)
_SPLITS = ("train", "val", "test")


def prepare_unseen(source: Path, folder: Path) -> dict[str, Any]:
    """Write other/{train,val,test}.parquet and the checkpoint ``base/`` once; return what the base came to."""
    domains = sorted(set(pq.read_table(source / "train.parquet", columns=["client"])["client"].to_pylist()))
    for name, half in (("first", domains[:5]), ("other", domains[5:])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in _SPLITS:
            rows = pq.read_table(source / f"{split}.parquet")
            held = pa.array([domain in half for domain in rows["client"].to_pylist()])
            pq.write_table(rows.filter(held), folder / name / f"{split}.parquet")
    return {"domains": domains[:5], **prepare(folder / "first", folder, BASE)}
