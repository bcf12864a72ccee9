"""What does a message cost a node beside its training, with and without a resident trainer?

    python -m benchmarks.trainer

Flower starts a process for each message. Here such a process answers one round's training message at a time, in turn
with a trainer (it forwards) and without (it imports torch, reads data and model and trains), over an adapter of about
10 MB in float32, on a base model of 100 M parameters that is read from a safetensors file. What counts is the wall
time from the start of the process to its end, less the seconds that the reply itself reports for training. Both ways
must give the same update to the byte.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks._one_message import read_content, write_content
from benchmarks.jobs import ROOT, table, write_results, write_section
from fedpeft import config
from fedpeft.config import Experiment
from fedpeft.rounds.roster import job_name
from fedpeft.trainer.address import parse
from fedpeft.training.adapted import load_base
from fedpeft.training.workbench import Workbench, assemble
from fedpeft.wire.message import Broadcast, Carried, Envelope, Join, Update
from fedpeft.wire.payload import pack, unpack
from fedpeft.wire.record import content_of, record_of

WAYS = ("without", "with")
PARTS = ("start", "libraries", "data and model", "answer", "end")


def checkpoint(folder: Path, *, hidden_size: int, num_layers: int) -> Path:
    """Write a vision transformer's random weights as a checkpoint that someone else might have trained."""
    model = {"name": "tiny", "architecture": "vit", "hidden_size": hidden_size, "num_layers": num_layers}
    sizes = {"intermediate_size": 4 * hidden_size, "image_size": 8, "patch_size": 4, "num_channels": 1, "num_heads": 12}
    made = settings({**model, **sizes}, rank=1)
    names = tuple(str(label) for label in range(10))
    load_base(made, made.task.build(), names).model.save_pretrained(folder)
    return folder


def settings(model: dict[str, Any], *, rank: int) -> Experiment:
    """Return digits, and one step of training."""
    return config.parse(
        {
            "name": "trainer-bench",
            "model": model,
            "data": {"name": "digits"},
            "partition": {"name": "iid", "num_clients": 10},
            "task": {"name": "image_classification"},
            "adapter": {"name": "lora", "rank": rank, "alpha": 2 * rank},
            "train": {"local_steps": 1, "batch_size": 8, "learning_rate": 0.001},
            "rounds": {"num_rounds": 1000},
            "compute": {"num_threads": 1},
        }
    )


def envelope(bench: Workbench, round_number: int, **more: Any) -> Envelope:
    """Return what stands at the head of the server's messages."""
    return Envelope(
        job=job_name(bench),
        round_number=round_number,
        config_hash=bench.experiment.hash,
        plan_hash=bench.adapted.plan.hash,
        base_hash=bench.adapted.base_hash,
        codec=bench.experiment.codec.words,
        **more,
    )


def write_train(folder: Path, bench: Workbench, round_number: int) -> None:
    """Write the message that asks for one round's training."""
    adapter = bench.adapted.initial
    body = bench.codec_down.encode(adapter, bench.common("down", round_number=round_number))
    header = Broadcast(
        envelope=envelope(bench, round_number, carries=Carried.of(adapter.manifest())), client=0, kind="train"
    )
    write_content(folder, content_of(pack(header, body)))
    (folder / "kind").write_text("train")


def write_join(folder: Path, bench: Workbench) -> None:
    """Write the message that hands out the plan."""
    plan = bench.adapted.plan.to_bytes()
    write_content(folder, content_of(pack(Join(envelope=envelope(bench, 0)), plan)))
    (folder / "kind").write_text("query.join")
    (folder / "job").write_text(job_name(bench))
    (folder / "plan").write_bytes(plan)


def answered(folder: Path, *trainer: str) -> float:
    """Run one message in a process and return its wall time in seconds."""
    (folder / "reply").mkdir(exist_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks._one_message", str(folder), repr(time.time()), *trainer]
    subprocess.run(command, check=True, cwd=ROOT)
    return time.monotonic() - began


def trained(folder: Path, *trainer: str) -> tuple[float, float, bytes, dict[str, float]]:
    """Return wall time, the seconds of training in it, the update, and where the other seconds went."""
    wall = answered(folder, *trainer)
    over = time.time()
    header, body = unpack(record_of(read_content(folder / "reply")), Update)
    spans: dict[str, float] = json.loads((folder / "reply" / "spans").read_text())
    spans |= {"answer": spans["answer"] - header.seconds, "end": over - spans.pop("ended")}
    return wall, header.seconds, body, spans


@contextmanager
def resident(folder: Path) -> Iterator[str]:
    """Start a trainer and yield its address once it is healthy."""
    address = f"unix://{folder}/t.sock"
    command = ["trainer", "--listen", address, "--state", str(folder / "state"), "--experiment", str(folder / "e.toml")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "fedpeft", *command], stdout=log, stderr=log, cwd=ROOT)
    try:
        while not _is_healthy(address):
            if process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def _is_healthy(address: str) -> bool:
    with grpc.insecure_channel(parse(address).target) as channel:
        try:
            found = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
        return bool(found.status == health_pb2.HealthCheckResponse.SERVING)


def measure(folder: Path, experiment: Experiment, rounds: int) -> dict[str, Any]:
    """Return the overheads, round by round, the ways in turn."""
    (folder / "e.toml").write_text(experiment.to_toml())
    bench = assemble(experiment)
    overheads: dict[str, list[float]] = {way: [] for way in WAYS}
    training: dict[str, list[float]] = {way: [] for way in WAYS}
    spans: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with resident(folder) as address:
        write_join(folder, bench)
        answered(folder, address)
        write_train(folder, bench, 1)
        first = trained(folder, address)
        for number in range(2, rounds + 2):
            write_train(folder, bench, number)
            bodies = {}
            for way in WAYS if number % 2 else reversed(WAYS):
                wall, seconds, bodies[way], parts = trained(folder, *([address] if way == "with" else []))
                spans[way].append(parts)
                overheads[way].append(wall - seconds)
                training[way].append(seconds)
                print(f"round {number} {way}: {wall - seconds:.2f} s beside {seconds:.2f} s of training", flush=True)
            if bodies["with"] != bodies["without"]:
                raise RuntimeError(f"round {number}: the two ways gave different updates")
    medians = {way: statistics.median(found) for way, found in overheads.items()}
    return {
        "rounds": rounds,
        "adapter_bytes": 4 * bench.adapted.initial.num_elements,
        "base_parameters": sum(parameter.numel() for parameter in bench.adapted.attached.model.parameters()),
        "overhead_seconds": overheads,
        "training_seconds": training,
        "first_with_seconds": first[0] - first[1],
        "median_part_seconds": {
            way: {part: statistics.median(each[part] for each in found) for part in found[0]}
            for way, found in spans.items()
        },
        "median_overhead_seconds": medians,
        "ratio": medians["with"] / medians["without"],
    }


def section(found: dict[str, Any]) -> str:
    """Return the part of docs/results.md."""
    rows = [
        (way, f"{found['median_overhead_seconds'][way]:.2f}", f"{min(times):.2f} to {max(times):.2f}")
        for way, times in found["overhead_seconds"].items()
    ]
    parts = [
        (way, *(f"{each[part]:.2f}" if part in each else "-" for part in PARTS))
        for way, each in found["median_part_seconds"].items()
    ]
    size, base = f"{found['adapter_bytes'] / 1e6:.1f} MB", f"{found['base_parameters'] / 1e6:.0f} M"
    return f"""## A resident trainer

Seconds that one training message takes a node beside the training itself, each in a new process as under Flower, over
{found["rounds"]} rounds in turn; an adapter of {size} on a base model of {base} parameters. With the trainer it is
{found["ratio"]:.2f} of the time without; updates are equal to the byte. The first message of a job, for which the
trainer reads the model, took {found["first_with_seconds"]:.2f} s. Made by `python -m benchmarks.trainer`.

{table(("trainer", "median", "range"), rows)}

Where it goes, medians of each part: *start* is the interpreter with Flower and the light part of fedpeft, *libraries*
torch and those of models, *answer* unpacking, checking and packing, with the trainer also handing over.

{table(("trainer", *PARTS), parts)}
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--num-layers", type=int, default=14)
    parser.add_argument("--rank", type=int, default=13)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        where = checkpoint(Path(name) / "base", hidden_size=chosen.hidden_size, num_layers=chosen.num_layers)
        experiment = settings({"name": "pretrained", "path": str(where)}, rank=chosen.rank)
        found = measure(Path(name), experiment, chosen.rounds)
    print(write_results("trainer", found))
    write_section("trainer", section(found))


if __name__ == "__main__":
    main()
