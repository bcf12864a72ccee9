"""What is written into the apps of a bundle so that something goes wrong, once, in round 2."""

from collections.abc import Callable
from pathlib import Path

from fedpeft.config import Experiment
from fedpeft.engines.bundle import write_bundle

__all__ = ["armed"]

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
_CLOCK = """
import time
from fedpeft.rounds import exchange as _exchange
_in_order = _exchange.in_order

def _timed(*arguments, **options):
    began = time.monotonic()
    try:
        yield from _in_order(*arguments, **options)
    finally:
        with open({times!r}, "a") as file:
            file.write(f"{{time.monotonic() - began}}\\n")

_exchange.in_order = _timed
"""
"""Of every round that a server began and left, those too that were abandoned: what the record alone does not say."""
_LOST = """
import sqlite3
from fedpeft.engines.patient import PatientGrid as _Grid
_push, _pushes = _Grid.push_messages, iter(range(1, 10**6))

def _losing(self, messages):
    sent = list(messages)
    ids = list(_push(self, sent))
    if next(_pushes) == 6 and not _marker.exists():
        with sqlite3.connect({database!r}, timeout=30) as database:
            lost = database.execute(
                "UPDATE message_ins SET delivered_at = 'lost' WHERE message_id = ? AND delivered_at = ''", ids[:1]
            )
        if lost.rowcount == 1:
            _once()
    return ids

_Grid.push_messages = _losing
"""
"""Round 2's second message is marked as delivered, as a node that ends after its pull leaves it; nobody has it."""
_CLIENT = """
from fedpeft.engines import apps as _apps
_forward = _apps.forward

def _faulty(trainer, message, context, **options):
    if message.metadata.group_id == "2" and context.node_config["partition-id"] == 1 and _once():
        {deed}
    return _forward(trainer, message, context, **options)

_apps.forward = _faulty

def _stall(seconds):
    from flwr.supernode.runtime import run_clientapp
    push = run_clientapp.push_objects
    run_clientapp.push_objects = lambda *given, **options: (time.sleep(seconds), push(*given, **options))
"""
"""Who stalls has announced the reply, and what it consists of follows much later."""


def armed(
    marker: Path,
    times: Path,
    *,
    server: tuple[str, str, int, bool] | None,
    client: str | None,
    lost: Path | None,
) -> Callable[[Path, Experiment], None]:
    """Return what writes a bundle whose server says how long its rounds were, and whose apps hold the fault.

    ``server`` is a point at which the server app is killed, ``client`` a statement in client 1's app, ``lost`` the
    SuperLink's database in which a message is lost.
    """
    serving = _CLOCK.format(times=str(times))
    serving += _SERVER.format(point=server) if server is not None else ""
    serving += _LOST.format(database=str(lost)) if lost is not None else ""
    answering = _CLIENT.format(deed=client) if client is not None else ""

    def write(bundle: Path, experiment: Experiment) -> None:
        write_bundle(bundle, experiment)
        for side, code in (("server", serving), ("client", answering)):
            app = bundle / side / "app.py"
            app.write_text(app.read_text() + _PRELUDE.format(marker=str(marker)) + code)

    return write
