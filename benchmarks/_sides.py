"""One side of ``simulation`` in a process of its own: python -m benchmarks._sides SIDE FOLDER ROUNDS OUT

Writes to OUT the moments (seconds since the epoch) at which rounds ended, and what the side says of itself.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch

from benchmarks._work import RATE, STEPS, batches, experiment, load_base, with_lora
from fedpeft.engines import inline
from fedpeft.report.record import RoundRecord
from fedpeft.report.watch import Watcher

__all__ = ["SIDES"]

Said = dict[str, Any]
Ended = Callable[[], None]
SIDE_BY_SIDE = {"compute": {"num_threads": 1, "stack": "auto"}}
PRIVACY = {
    "privacy": {
        "unit": "example",
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "clip": 1.0,
        "sample_rate": 1 / STEPS,
        "accountant": "rdp",
    }
}


@final
class Stamps(Watcher):
    """Says when a round of training has ended."""

    def __init__(self, ended: Ended) -> None:
        self._ended = ended

    def round_finished(self, record: RoundRecord) -> None:
        """Leave out round 0, which trains nobody."""
        if record.round:
            self._ended()


def by_ours(folder: Path, rounds: int, ended: Ended, **changes: dict[str, Any]) -> Said:
    """``fedpeft simulate``: messages, checks, checkpoints, evaluation and all."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        inline.simulate(experiment(folder, out, rounds=rounds, **changes), watcher=Stamps(ended))
        stack = out / "stack.json"
        return {"stack": json.loads(stack.read_text(encoding="utf-8"))} if stack.exists() else {}


def by_loop(folder: Path, rounds: int, ended: Ended, clients: int) -> Said:
    """Train what one would write by hand: no messages, one client after the other, plain averaging."""
    model = with_lora(folder, load_base(folder))
    parameters = [each for each in model.parameters() if each.requires_grad]
    everyone = [batches(folder, client) for client in range(clients)]
    state = [each.detach().clone() for each in parameters]
    model.train()
    for _ in range(rounds):
        total = [torch.zeros_like(each) for each in state]
        for data in everyone:
            with torch.no_grad():
                for each, value in zip(parameters, state, strict=True):
                    each.copy_(value)
            optimizer = torch.optim.AdamW(parameters, lr=RATE)
            for batch in data:
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
            total = [summed + value.detach() / clients for summed, value in zip(total, parameters, strict=True)]
        state = total
        ended()
    return {}


def by_flower(folder: Path, rounds: int, ended: Ended, clients: int, *, cached: bool) -> Said:
    """Run the ordinary apps under Flower's simulation runtime, a client a core."""
    from flwr.simulation import run_simulation

    from benchmarks._public_app import client_app, server_app

    run_simulation(
        server_app=server_app(str(folder), clients=clients, rounds=rounds, ended=ended),
        client_app=client_app(str(folder), cached=cached),
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return {}


def by_pfl(folder: Path, rounds: int, ended: Ended, clients: int) -> Said:
    """Run pfl-research's simulated backend, where it is installed."""
    from benchmarks._pfl import simulate

    simulate(folder, rounds, ended, clients)
    return {}


SIDES: dict[str, Callable[[Path, int, Ended, int], Said]] = {
    "ours, side by side": lambda folder, rounds, ended, _: by_ours(folder, rounds, ended, **SIDE_BY_SIDE),
    "ours, side by side, 2 workers": lambda folder, rounds, ended, _: by_ours(
        folder, rounds, ended, **SIDE_BY_SIDE, simulation={"workers": 2}
    ),
    "ours, one at a time": lambda folder, rounds, ended, _: by_ours(folder, rounds, ended),
    "ours, private": lambda folder, rounds, ended, _: by_ours(folder, rounds, ended, **SIDE_BY_SIDE, **PRIVACY),
    "loop": by_loop,
    "flower, model built": lambda folder, rounds, ended, n: by_flower(folder, rounds, ended, n, cached=False),
    "flower, model cached": lambda folder, rounds, ended, n: by_flower(folder, rounds, ended, n, cached=True),
    "pfl": by_pfl,
}


def main() -> None:
    """Run the side that was named."""
    side, folder, rounds, out = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    clients = int(json.loads((folder / "part.json").read_text(encoding="utf-8"))["clients"])
    moments: list[float] = []
    said = SIDES[side](folder, rounds, lambda: moments.append(time.time()), clients)
    out.write_text(json.dumps({"moments": moments, **said}), encoding="utf-8")


if __name__ == "__main__":
    main()
