"""Kill or stall every part of a real deployment, and compare the final adapter with an undisturbed run's, to the bit.

SuperLink, SuperNodes, executors and trainers run as processes with TLS and keys; ``fedpeft serve`` supervises, and what
was killed is started again as a container's restart policy would. A fault strikes once, in round 2.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.deploy import local as processes_here
from fedpeft.deploy import submit as submitting
from fedpeft.deploy.init import init
from fedpeft.deploy.local import Local, up
from fedpeft.deploy.register import await_online
from fedpeft.deploy.serve import serve
from fedpeft.engines import inline
from fedpeft.engines.bundle import write_bundle
from fedpeft.report.record import RoundRecord
from fedpeft.report.watch import Watcher
from fedpeft.rounds import fence

from .jobs import table, write_results, write_section

DEADLINE_SECONDS = 30.0
SLACK_SECONDS = 5.0
SERVER_POINTS = {
    "before the messages": ("fedpeft.engines.patient:PatientGrid", "push_messages", 5, False),
    "after the messages": ("fedpeft.engines.patient:PatientGrid", "push_messages", 6, True),
    "after the first reply": ("fedpeft.rounds.exchange:Exchange", "_take", 3, True),
    "after all replies": ("fedpeft.rounds.exchange:Exchange", "_take", 4, True),
    "after aggregation": ("fedpeft.server", "_applied", 2, True),
    "between record and checkpoint": ("fedpeft.rounds.checkpoint", "save", 3, False),
    "while it is committed": ("fedpeft.rounds.checkpoint", "commit_folder", 3, False),
    "after the commit": ("fedpeft.rounds.checkpoint", "save", 3, True),
}
"""Point of round 2 -> where, what is called, at which call of it, and whether after it."""
_PRELUDE = """
import importlib, os, pathlib, signal, time
_marker = pathlib.Path({marker!r})

def _once():
    try:
        _marker.touch(exist_ok=False)
        return True
    except FileExistsError:
        return False
"""
_SERVER = """
def _arm(place, name, nth, after):
    module, _, inside = place.partition(":")
    owner = importlib.import_module(module)
    owner = getattr(owner, inside) if inside else owner
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def last(*arguments, **options):
        due = next(calls) == nth
        if due and not after and _once():
            os.kill(os.getpid(), signal.SIGKILL)
        done = original(*arguments, **options)
        if due and after and _once():
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, name, last)

if not _marker.exists():
    _arm(*{point!r})
"""
_CLIENT = """
from fedpeft.engines import apps as _apps
_forward = _apps.forward

def _faulty(trainer, message, context, **options):
    if message.metadata.group_id == "2" and context.node_config["partition-id"] == 1 and _once():
        {deed}
    return _forward(trainer, message, context, **options)

_apps.forward = _faulty
"""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens once, in round 2."""

    server: tuple[str, str, int, bool] | None = None
    client: str | None = None
    """A statement in the ClientApp of client 1."""
    kill: str | None = None
    """A service that is killed while round 2 trains."""
    away_seconds: float = 1.0
    """Until it is started again."""
    min_clients: int = 2
    """2: an attempt that lacks a reply is abandoned and done again; 1: the round goes on without."""


FAULTS = {
    **{f"server app, {name}": Fault(server=point) for name, point in SERVER_POINTS.items()},
    "SuperLink, away 3 s": Fault(kill="superlink", away_seconds=3.0),
    "SuperLink, away 70 s": Fault(kill="superlink", away_seconds=70.0),
    "SuperNode": Fault(kill="supernode-2"),
    "trainer": Fault(kill="trainer-2"),
    "ClientApp": Fault(client="os.kill(os.getpid(), signal.SIGKILL)"),
    "stalled client, round goes on": Fault(client="time.sleep(20)", min_clients=1),
    "hung client, round goes on": Fault(client="time.sleep(45)", min_clients=1),
}


def settings(out: Path, *, min_clients: int, rounds: int) -> Experiment:
    """Return the job: LoRA-FAIR with ComPEFT on a small transformer, some seconds a round."""
    model = {"name": "tiny", "architecture": "vit", "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    shape = {"intermediate_size": 64, "image_size": 8, "patch_size": 4, "num_channels": 1}
    return config.parse(
        {
            "name": "faults",
            "seed": 3,
            "model": {**model, **shape},
            "data": {"name": "digits"},
            "partition": {"name": "iid", "num_clients": 2},
            "task": {"name": "image_classification"},
            "adapter": {"name": "lora", "rank": 2, "alpha": 4},
            "strategy": {"name": "lora_fair"},
            "codec": {"name": "compeft"},
            "train": {"local_steps": 200, "batch_size": 16, "learning_rate": 0.01},
            "rounds": {
                "num_rounds": rounds,
                "min_clients": min_clients,
                "timeout_seconds": DEADLINE_SECONDS,
                "deadline_seconds": DEADLINE_SECONDS,
            },
            "compute": {"num_threads": 1},
            "output": {"directory": str(out)},
        }
    )


class Strike(Watcher):
    """Kills a service once round 1 is in the record, and so while round 2 trains."""

    def __init__(self, deed: Callable[[], None]) -> None:
        self.deed: Callable[[], None] | None = deed

    def round_finished(self, record: RoundRecord) -> None:
        """Strike after round 1, once."""
        if record.round == 1 and self.deed is not None:
            deed, self.deed = self.deed, None
            threading.Thread(target=deed).start()


@contextmanager
def keeper(local: Local, away: dict[str, float]) -> Iterator[None]:
    """Start again whatever ends, as a restart policy does; what is in ``away`` not before that moment."""
    over = threading.Event()
    running: Any = local.processes

    def keep() -> None:
        while not over.wait(0.5):
            for name, process in list(running.items()):
                if process.poll() is not None and time.monotonic() >= away.get(name, 0.0):
                    command = (Path(process.args[0]).name, *process.args[1:])
                    running[name] = processes_here._start(name, command, local)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def killed(local: Local, name: str, seconds: float, away: dict[str, float]) -> None:
    """Kill a service and keep it away for so long."""
    time.sleep(2.0)
    away[name] = time.monotonic() + seconds
    process: subprocess.Popen[bytes] = local.processes[name]
    os.kill(process.pid, signal.SIGKILL)


def struck(
    folder: Path, local: Local, away: dict[str, float], name: str, rounds: int, reference: str
) -> dict[str, Any]:
    """Run the job with one fault and say what came of it."""
    fault, out, marker = FAULTS[name], folder / "run", folder / "struck"
    folder.mkdir(parents=True)

    def armed(bundle: Path, experiment: Experiment) -> None:
        write_bundle(bundle, experiment)
        for side, code in (("server", _SERVER), ("client", _CLIENT)):
            given = {"server": fault.server, "client": fault.client}[side]
            if given is not None:
                app = bundle / side / "app.py"
                told = (_PRELUDE + code).format(marker=str(marker), point=given, deed=given)
                app.write_text(app.read_text() + told)

    watcher = Watcher()
    if fault.kill is not None:
        service = fault.kill

        def deed() -> None:
            marker.touch()
            killed(local, service, fault.away_seconds, away)

        watcher = Strike(deed)
    await_online(local.operator, 2, seconds=180)
    submitting.write_bundle, began = armed, time.monotonic()
    experiment = settings(out, min_clients=fault.min_clients, rounds=rounds)
    run = serve(local.operator, experiment, watcher=watcher, say=lambda words: print(f"    {words}", flush=True))
    longest = max(record.seconds.get("clients", 0.0) for record in run.records())
    return {
        "fault": name,
        "struck": marker.exists(),
        "identical": run.summary()["adapter_digest"] == reference,
        "starts": fence.current(run.path),
        "failed_replies": run.summary()["num_failures"],
        "longest_round_seconds": round(longest, 2),
        "within_deadline": longest <= DEADLINE_SECONDS + SLACK_SECONDS,
        "wall_seconds": round(time.monotonic() - began, 1),
    }


def section(found: list[dict[str, Any]], calm: float, rounds: int) -> str:
    """Return the part of docs/results.md."""
    rows = [
        (
            row["fault"],
            "yes" if row["identical"] else f"no, {row['failed_replies']} replies missing",
            row["starts"],
            f"{row['longest_round_seconds']:.1f}",
            "yes" if row["within_deadline"] else "no",
            f"{row['wall_seconds']:.0f}",
        )
        for row in found
    ]
    bound = f"at most {DEADLINE_SECONDS + SLACK_SECONDS:.0f} s"
    head = ("fault", "same bits", "starts", "longest round, s", bound, "all, s")
    return f"""## What survives what

A deployment of processes with TLS, keys and trainers, two clients, {rounds} rounds of LoRA-FAIR with ComPEFT, kept
alive by `fedpeft serve`; each fault is a kill -9 or a client that does not answer, once, in round 2. Same bits: the
final adapter is that of an undisturbed simulation. A round has a deadline of {DEADLINE_SECONDS:.0f} s; undisturbed,
all takes {calm:.0f} s. With a lost reply the attempt is abandoned at the deadline and done again, but for the two
last rows, where `min_clients = 1` lets the round go on without. Made by `python -m benchmarks.faults` (`make faults`).

{table(head, rows)}
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="Faults whose name matches this; nothing is written then.")
    chosen = parser.parse_args()
    names = [name for name in FAULTS if re.match(chosen.only or "", name)]
    FAULTS["none"] = Fault()
    with tempfile.TemporaryDirectory(prefix="fedpeft-faults-") as scratch:
        folder, away, found = Path(scratch), dict[str, float](), list[dict[str, Any]]()
        whole = inline.simulate(settings(folder / "reference", min_clients=2, rounds=chosen.rounds))
        reference = str(whole["adapter_digest"])
        with up(init(folder / "f", num_clients=2, host="localhost")) as local, keeper(local, away):
            for number, name in enumerate(["none", *names]):
                found.append(struck(folder / str(number), local, away, name, chosen.rounds, reference))
                print(json.dumps(found[-1]), flush=True)
    calm, rest = found[0]["wall_seconds"], found[1:]
    if chosen.only is None:
        told = {"undisturbed_seconds": calm, "deadline_seconds": DEADLINE_SECONDS, "faults": rest}
        print(write_results("faults", told))
        write_section("faults", section(rest, calm, chosen.rounds))
    print(section(rest, calm, chosen.rounds))
    missed = [row["fault"] for row in rest if row["fault"] != "none" and not row["struck"]]
    if missed or not found[0]["identical"]:
        raise RuntimeError(f"no faults happened: {missed}; undisturbed identical: {found[0]['identical']}")


if __name__ == "__main__":
    main()
