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
from fedpeft.report.record import RoundRecord
from fedpeft.report.watch import Watcher
from fedpeft.rounds import fence

from ._injected import armed
from .jobs import ROOT, table, write_results, write_section

_CALM = "none"
SLACK_SECONDS = 5.0
_STALLED_BEYOND_SECONDS = 15.0
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


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens once, in round 2."""

    server: tuple[str, str, int, bool] | None = None
    lost: bool = False
    """A message is delivered to nobody."""
    client: str | None = None
    """A statement in the ClientApp of client 1."""
    kill: str | None = None
    """A service that is ended while round 2 trains."""
    by: signal.Signals = signal.SIGKILL
    """SIGTERM: it is told to end, as a restart does."""
    away_seconds: float = 1.0
    """Until it is started again."""
    min_clients: int = 2
    """2: an attempt that lacks a reply is abandoned and done again; 1: the round goes on without."""


FAULTS = {
    **{f"server app, {name}": Fault(server=point) for name, point in SERVER_POINTS.items()},
    "SuperLink, away 3 s": Fault(kill="superlink", away_seconds=3.0),
    "SuperLink, away 70 s": Fault(kill="superlink", away_seconds=70.0),
    "SuperNode": Fault(kill="supernode-2"),
    "SuperNode, restarted": Fault(kill="supernode-2", by=signal.SIGTERM, away_seconds=0.0),
    "trainer": Fault(kill="trainer-2"),
    "ClientApp": Fault(client="os.kill(os.getpid(), signal.SIGKILL)"),
    "lost message": Fault(lost=True),
    "stalled client": Fault(client="_stall({longer})"),
    "hung client": Fault(client="time.sleep(10**6)"),
    "stalled client, round goes on": Fault(client="_stall({longer})", min_clients=1),
    "hung client, round goes on": Fault(client="time.sleep(10**6)", min_clients=1),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all runs of one call have in common."""

    rounds: int
    deadline: float


def settings(out: Path, job: Job, *, min_clients: int) -> Experiment:
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
                "num_rounds": job.rounds,
                "min_clients": min_clients,
                "timeout_seconds": job.deadline,
                "deadline_seconds": job.deadline,
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


def killed(local: Local, name: str, fault: Fault, away: dict[str, float]) -> None:
    """Kill a service and keep it away for so long."""
    time.sleep(2.0)
    away[name] = time.monotonic() + fault.away_seconds
    process: subprocess.Popen[bytes] = local.processes[name]
    os.kill(process.pid, fault.by)


def struck(
    folder: Path, local: Local, away: dict[str, float], fault: Fault, job: Job, reference: str
) -> dict[str, Any]:
    """Run the job with one fault and say what came of it."""
    out, marker, times = folder / "run", folder / "struck", folder / "times"
    folder.mkdir(parents=True)
    watcher = Watcher()
    if (service := fault.kill) is not None:

        def deed() -> None:
            marker.touch()
            killed(local, service, fault, away)

        watcher = Strike(deed)
    await_online(local.operator, 2, seconds=180)
    client = fault.client and fault.client.format(longer=job.deadline + _STALLED_BEYOND_SECONDS)
    lost = local.operator.folder / "superlink.db" if fault.lost else None
    submitting.write_bundle = armed(marker, times, server=fault.server, client=client, lost=lost)
    began = time.monotonic()
    experiment = settings(out, job, min_clients=fault.min_clients)
    run = serve(local.operator, experiment, watcher=watcher, say=lambda words: print(f"    {words}", flush=True))
    longest = max(float(line) for line in times.read_text().split())
    return {
        "struck": marker.exists(),
        "identical": run.summary()["adapter_digest"] == reference,
        "starts": fence.current(run.path),
        "failed_replies": run.summary()["num_failures"],
        "longest_round_seconds": round(longest, 2),
        "deadline_seconds": job.deadline,
        "within_deadline": longest <= job.deadline + SLACK_SECONDS,
        "wall_seconds": round(time.monotonic() - began, 1),
    }


def section(found: list[dict[str, Any]], calm: float, rounds: int) -> str:
    """Return the part of docs/results.md."""
    star = {True: "*", False: ""}
    rows = [
        (
            row["fault"],
            "yes" if row["identical"] else f"no, {row['failed_replies']} replies missing",
            row["starts"],
            f"{row['longest_round_seconds']:.1f} of {row['deadline_seconds']:.0f}{star['recorded_only' in row]}",
            "yes" if row["within_deadline"] else "no",
            f"{row['wall_seconds']:.0f}",
        )
        for row in found
    ]
    bound = f"within deadline + {SLACK_SECONDS:.0f} s"
    head = ("fault", "same bits", "starts", "longest round of its deadline, s", bound, "all, s")
    return f"""## What survives what

A deployment of processes with TLS, keys and trainers, two clients, {rounds} rounds of LoRA-FAIR with ComPEFT, kept
alive by `fedpeft serve`; each fault strikes once, in round 2: a kill -9, a restart by SIGTERM, a message that is marked
as delivered and was not, a client that announces a reply and sends it after the deadline (stalled), one that never
answers (hung). Same bits: the final adapter is that of an undisturbed simulation. The longest round is of all that a
server began, those too that were abandoned (but * of recorded rounds alone). Undisturbed, all takes {calm:.0f} s. With
a lost reply the attempt is abandoned and done again, but where `min_clients = 1` lets the round go on without. Made by
`python -m benchmarks.faults` (`make faults`).

{table(head, rows)}
{_missing(found)}
Measured on two cores that others used too, so times are upper bounds.
"""


def _missing(found: list[dict[str, Any]]) -> str:
    names = sorted(set(FAULTS) - {row["fault"] for row in found})
    return f"\nNot measured yet: {'; '.join(names)}.\n" if names else ""


def merged(rows: list[dict[str, Any]]) -> tuple[float, list[dict[str, Any]]]:
    """Return the undisturbed seconds, and the rows with those measured before that were not measured anew."""
    path = ROOT / "docs" / "results" / "faults.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"faults": []}
    known = {row["fault"]: row for row in (*before["faults"], *rows)}
    calm = known[_CALM]["wall_seconds"] if _CALM in known else before["undisturbed_seconds"]
    return calm, [known[name] for name in FAULTS if name in known]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deadline", type=float, default=30.0, help="Seconds of a round; raise on a busy machine.")
    parser.add_argument("--only", help="Faults whose name matches this whole; the others' rows stay as they were.")
    chosen = parser.parse_args()
    job = Job(rounds=chosen.rounds, deadline=chosen.deadline)
    names = [name for name in (_CALM, *FAULTS) if re.fullmatch(chosen.only or ".*", name)]
    with tempfile.TemporaryDirectory(prefix="fedpeft-faults-") as scratch:
        found = list[dict[str, Any]]()
        for row in measured(Path(scratch), names, job):
            found.append(row)
            written(found, chosen.rounds)
    missed = [row["fault"] for row in found if not row["struck"] and row["fault"] != _CALM]
    others = [row["fault"] for row in found if row["fault"] == _CALM and not row["identical"]]
    if missed or others:
        raise RuntimeError(f"no faults happened: {missed}; undisturbed and other bits: {others}")


def written(found: list[dict[str, Any]], rounds: int) -> None:
    """Write what is known so far."""
    calm, rows = merged(found)
    write_results("faults", {"undisturbed_seconds": calm, "faults": rows})
    write_section("faults", section(rows, calm, rounds))


def measured(folder: Path, names: list[str], job: Job) -> Iterator[dict[str, Any]]:
    """Yield what came of an undisturbed run, and of each fault, on one deployment."""
    away: dict[str, float] = {}
    whole = inline.simulate(settings(folder / "reference", job, min_clients=2))
    with up(init(folder / "f", num_clients=2, host="localhost")) as local, keeper(local, away):
        for number, name in enumerate(names):
            fault = FAULTS.get(name, Fault())
            row = struck(folder / str(number), local, away, fault, job, str(whole["adapter_digest"]))
            print(json.dumps({"fault": name, **row}), flush=True)
            yield {"fault": name, **row}


if __name__ == "__main__":
    main()
