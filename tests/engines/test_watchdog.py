"""A process that is one message's ends when nobody waits any more; what goes wrong in it is told without words."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from fedpeft.engines.apps import flower_client_app
from fedpeft.wire.record import Content, record_of, server_message

PROGRAM = """
import sys, time
sys.argv[0] = {name!r}
from flwr.app import RecordDict
from fedpeft.engines import watchdog
from fedpeft.wire.record import server_message
watchdog.GRACE_SECONDS = 0.2
message = server_message(RecordDict(), message_type="train", run=1, node=1, ttl=0.2)
with watchdog.watched(message):
    time.sleep({inside})
time.sleep({after})
print("over")
"""


@pytest.mark.parametrize(
    ("name", "inside", "after", "ends"),
    [
        ("/opt/bin/flwr-clientapp", 60.0, 0.0, True),
        ("/opt/bin/flwr-clientapp", 0.0, 0.8, False),
        ("/opt/ray/default_worker.py", 0.8, 0.0, False),
    ],
)
def test_only_a_messages_own_process_ends_and_only_while_it_answers(
    name: str, inside: float, after: float, *, ends: bool
) -> None:
    program = PROGRAM.format(name=name, inside=inside, after=after)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == ((1, "") if ends else (0, "over\n")), done.stderr
    assert ("Timeout" in done.stderr) is ends


def asked(folder: Path, **node_config: str | int) -> Message:
    context = Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={})
    record = record_of(Content(b"header", b"checksum", b"body"))
    return flower_client_app(folder)(server_message(record, message_type="train", run=1, node=1), context)


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ("unix:///secret/none.sock", "gave up: run, RunError"),
        ("secret.example.org:1", "gave up: input, InputError"),
    ],
)
def test_the_way_to_a_trainer_is_not_told(tmp_path: Path, trainer: str, told: str) -> None:
    reply = asked(tmp_path, trainer=trainer)
    assert re.fullmatch(rf"{told} \(id [0-9a-f]{{12}}\)", reply.error.reason), reply.error.reason


def test_what_nobody_foresaw_is_told_without_words_too(tmp_path: Path) -> None:
    """Neither run config nor node config say what they must."""
    reply = asked(tmp_path)
    assert re.fullmatch(r"gave up: [a-z]+, [A-Za-z]+Error \(id [0-9a-f]{12}\)", reply.error.reason)
