"""One root seed, and an independent stream for every purpose derived from it; no global generator is ever used."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive", "generator", "isolated"]


def derive(root: int, *purpose: str | int) -> int:
    """Return the 63-bit seed of one purpose, for example ``derive(7, "sampling", round)``."""
    name = json.dumps([root, *purpose]).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1


def generator(root: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator seeded for one purpose."""
    return torch.Generator().manual_seed(derive(root, *purpose))


@contextmanager
def isolated(root: int, *purpose: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block (dropout, library initialisers) and restore them after it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        seed = derive(root, *purpose)
        # Where no device is in use, torch's own function would only note down, slowly, what to seed if one ever is.
        torch.manual_seed(seed) if devices else torch.default_generator.manual_seed(seed)
        yield
