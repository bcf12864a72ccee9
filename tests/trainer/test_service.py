"""The service over a real socket, with a fake in the place of training."""

import logging
import socket
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedpeft.errors import InputError
from fedpeft.rounds.memory import entries, remember
from fedpeft.tensors import Tensors
from fedpeft.trainer.address import parse
from fedpeft.trainer.forward import forward
from fedpeft.trainer.message import Question, ask_parts
from fedpeft.trainer.protocol import METHOD, SERVICE
from fedpeft.trainer.service import SEATS, serving
from fedpeft.trainer.states import States
from fedpeft.trainer.worker import Call, Worker
from fedpeft.wire.pb.v1 import trainer_pb2 as pb
from tests.trainer.conftest import Running, ask, body_of, kept, question, replying
from tests.trainer.light import message_of

PATIENCE = 20.0


class Fake:
    """Joins, and trains by counting: each reply says which work it was; who joined keeps n in round n."""

    def __init__(self, work: Callable[[Message, Call], Message | None] | None = None) -> None:
        self.asked: list[Question] = []
        self.work = work

    def __call__(self, question: Question, message: Message, context: Context, call: Call) -> Message:
        self.asked.append(question)
        if question.message_type == "query.join":
            context.state["run"] = ConfigRecord({"job": "job", "plan": b"plan"})
        elif "run" in context.state:
            number = max(entries(context.state), default=0) + 1
            remember(context.state, Tensors({"m": torch.full((2,), float(number))}), round_number=number)
        reply = self.work(message, call) if self.work else None
        return reply or replying(message, f"{question.message_type} {len(self.asked)}".encode())


def memories(place: Path, run: int = 7, client: int = 0) -> list[int]:
    record = kept(place).of(run, client)
    with kept(place).lent(run, client, record):
        return list(entries(record))


def soon(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


def health_of(target: str, service: str = "") -> int:
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE).status)


def test_a_question_reaches_the_app_and_its_reply_comes_back(running: Running) -> None:
    fake = Fake(lambda message, _: replying(message, bytes(3_000_000)))
    with running(fake) as address:
        assert body_of(ask(address, b"x" * 2_500_000)) == bytes(3_000_000)

    (asked,) = fake.asked
    assert (asked.message_type, asked.run, asked.client, len(asked.content.body)) == ("train", 7, 0, 2_500_000)


def test_the_file_of_the_run_config_goes_along(running: Running, tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text("name = 'e'")
    fake = Fake()
    with running(fake) as address:
        for name in ("e.toml", "none.toml"):
            told = {"experiment": name, "override": "seed=4"}
            context = Context(run_id=1, node_id=2, node_config={"partition-id": 0}, state=None, run_config=told)  # type: ignore[arg-type]
            forward(str(address), message_of(), context, folder=tmp_path)

    assert [(asked.experiment, asked.run_config["override"]) for asked in fake.asked] == [
        ("name = 'e'", "seed=4"),
        (None, "seed=4"),
    ]


def test_an_error_of_the_app_is_its_reply_and_is_not_kept(running: Running, place: Path) -> None:
    fake = Fake(lambda message, _: Message(Error(1000, "DataError: words"), reply_to=message))
    with running(fake) as address:
        replies = [ask(address), ask(address)]

    assert [(reply.error.code, reply.error.reason) for reply in replies] == [(1000, "DataError: words")] * 2
    assert len(fake.asked) == 2


def test_a_question_asked_again_has_the_same_reply_and_is_not_worked_on(running: Running, place: Path) -> None:
    fake = Fake()
    with running(fake) as address:
        ask(address, kind="query.join")
        first = [body_of(ask(address, body)) for body in (b"1", b"2")]
        assert [body_of(ask(address, body)) for body in (b"1", b"2")] == first
        assert memories(place) == [1, 2]
        others = [ask(address, b"2", **change) for change in ({"kind": "evaluate"}, {"client": 1}, {"run": 8})]
        assert body_of(ask(address, b"2")) == first[1]

    assert len({*map(body_of, others), *first}) == 5
    assert len(fake.asked) == 6


def test_only_the_last_replies_are_held(running: Running) -> None:
    fake = Fake()
    with running(fake) as address:
        first = body_of(ask(address, b"0"))
        for number in range(1, 5):
            ask(address, str(number).encode())
        assert body_of(ask(address, b"0")) != first


def test_joining_again_forgets_memories_and_the_replies_made_from_them(running: Running, place: Path) -> None:
    fake = Fake()
    with running(fake) as address:
        for client in (0, 1):
            ask(address, kind="query.join", client=client)
            ask(address, client=client)
        ask(address, kind="query.join")
        assert memories(place, client=0) == []
        assert memories(place, client=1) == [1]
        assert body_of(ask(address, client=1)) == b"train 4"
        assert body_of(ask(address)) == b"train 6"


def test_memories_are_there_after_a_restart(running: Running, place: Path) -> None:
    for _ in range(2):
        with running(Fake()) as address:
            if not memories(place):
                ask(address, kind="query.join")
            ask(address)
    assert memories(place) == [1, 2]


def test_one_question_at_a_time_and_the_others_wait(running: Running) -> None:
    busy, most = [], []

    def work(*_: object) -> None:
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.05)
        busy.pop()

    with running(Fake(work)) as address, ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda number: ask(address, str(number).encode()), range(4)))

    assert len(set(map(body_of, replies))) == 4
    assert most == [1] * 4


class Held:
    """Work that goes on, looking at its call, until it is let go."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.given_up = 0

    def __call__(self, message: Message, call: Call) -> None:
        self.began.set()
        while not self.go.wait(0.01):
            try:
                call.require()
            except BaseException:
                self.given_up += 1
                raise


def test_a_question_that_is_out_of_time_leaves_no_trace_and_the_next_is_worked_on(
    running: Running, place: Path
) -> None:
    held = Held()
    fake = Fake(held)
    with running(fake) as address:
        held.go.set()
        ask(address, kind="query.join")
        held.go.clear()
        late = ask(address, ttl=0.5)
        soon(lambda: held.given_up == 1)
        assert memories(place) == []
        held.go.set()
        assert body_of(ask(address)) == b"train 3"
        assert memories(place) == [1]

    assert late.error.code == 1000
    assert f"RunError: trainer {address}: no answer within the 0 s that the server waits" in late.error.reason


def test_work_that_never_looks_up_is_thrown_away_all_the_same(running: Running, place: Path) -> None:
    def work(_: Message, call: Call) -> None:
        soon(call._over.is_set)  # gRPC tells the server a little after it has told who asked

    fake = Fake()
    with running(fake) as address:
        ask(address, kind="query.join")
        fake.work = work
        late = ask(address, ttl=0.3)
        fake.work = None
        assert body_of(ask(address)) == b"train 3"
        assert memories(place) == [1]
    assert late.has_error()


def test_a_question_that_waits_gives_its_turn_up(running: Running) -> None:
    held = Held()
    fake = Fake(held)
    with running(fake) as address, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, address, b"1")
        held.began.wait(PATIENCE)
        second = ask(address, b"2", ttl=0.3)
        held.go.set()
        assert body_of(first.result(PATIENCE)) == b"train 1"
        assert body_of(ask(address, b"3")) == b"train 2"

    assert second.has_error()
    assert [asked.content.body for asked in fake.asked] == [b"1", b"3"]


def test_a_question_that_is_cancelled_leaves_no_trace(running: Running, place: Path) -> None:
    held = Held()
    with running(Fake(held)) as address, grpc.insecure_channel(address.target) as channel:
        method = channel.stream_stream(METHOD, pb.AskPart.SerializeToString, pb.AnswerPart.FromString)
        call = method(ask_parts(question(run=7)))
        held.began.wait(PATIENCE)
        call.cancel()
        soon(lambda: held.given_up == 1)
        held.go.set()
        assert memories(place, client=1) == []
        assert body_of(ask(address)) == b"train 2"


def test_a_question_without_a_seat_is_turned_away_and_health_is_told(running: Running) -> None:
    held = Held()
    with running(Fake(held)) as address, ThreadPoolExecutor(SEATS + 1) as pool:
        asked = [pool.submit(ask, address, str(number).encode()) for number in range(SEATS + 1)]
        soon(lambda: any(future.done() for future in asked))
        assert health_of(address.target) == health_pb2.HealthCheckResponse.SERVING
        held.go.set()
        (turned,) = [reply.error.reason for future in asked if (reply := future.result(PATIENCE)).has_error()]

    assert turned == f"RunError: trainer {address}: resource_exhausted: {SEATS} questions wait already"


def test_words_of_an_unforeseen_error_stay_in_the_log(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    def work(*_: object) -> None:
        raise RuntimeError("the patient's name")

    with running(Fake(work)) as address:
        reply = ask(address)

    assert reply.error.reason == f"RunError: trainer {address}: internal: the trainer failed; its own log says why"
    assert "the patient's name" in caplog.text


def test_a_damaged_question_is_refused_by_name(running: Running) -> None:
    fake = Fake()
    with running(fake, limit=10) as address, grpc.insecure_channel(address.target) as channel:
        method = channel.stream_stream(METHOD, pb.AskPart.SerializeToString, pb.AnswerPart.FromString)
        parts = list(ask_parts(question()))
        parts[1].piece = b"bods"
        with pytest.raises(grpc.RpcError) as raised:
            list(method(iter(parts)))
        large = ask(address, b"12345678901")

    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "sha256 does not hold" in raised.value.details()  # type: ignore[attr-defined]
    assert "invalid_argument: question: declares a body of 11 bytes, expected at most 10" in large.error.reason
    assert fake.asked == []


def test_a_trainer_that_is_not_there_is_named_with_the_remedy(place: Path) -> None:
    address = f"unix://{place}/t.sock"
    missing = ask(address)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{place}/t.sock")
    (place / "t.sock").chmod(0o600)
    silent = ask(address)

    for reply in (missing, silent):
        assert reply.error.code == 1000
        assert reply.error.reason.startswith(f"RunError: trainer {address}: cannot be reached, or went away")
        assert f"'fedpeft trainer --listen {address} --state DIR', or leave trainer out" in reply.error.reason


def test_a_trainer_that_stops_lets_go_of_what_it_does(running: Running, place: Path) -> None:
    held = Held()
    with ThreadPoolExecutor(1) as pool:
        with running(Fake(held), grace=0.2) as address:
            reply = pool.submit(ask, address)
            held.began.wait(PATIENCE)
        assert not (place / "t.sock").exists()
        said = reply.result(PATIENCE).error.reason

    assert "cannot be reached, or went away" in said
    assert held.given_up == 1
    assert memories(place) == []


@pytest.mark.parametrize("address", ["0.0.0.0:9000", "unix://t.sock"])
def test_an_address_that_is_none_is_the_reply(address: str) -> None:
    assert ask(address).error.reason.startswith(f"InputError: trainer address '{address}': expected unix:///")


def test_a_socket_that_others_could_have_put_there_is_not_asked(running: Running, place: Path) -> None:
    fake = Fake()
    with running(fake) as address:
        (place / "t.sock").chmod(0o666)
        assert "socket has mode 0666, open to others" in ask(address).error.reason
    assert fake.asked == []


def test_a_message_that_is_too_late_is_not_asked(running: Running) -> None:
    fake = Fake()
    with running(fake) as address:
        assert "RunError: the message came 3 s after its time" in ask(address, ttl=-3.2).error.reason
    assert fake.asked == []


def test_the_socket_is_its_owners_alone_and_gone_in_the_end(running: Running, place: Path) -> None:
    with running(Fake()):
        assert stat.S_IMODE((place / "t.sock").stat().st_mode) == 0o600
    assert not (place / "t.sock").exists()


def test_health_is_told_once_it_is_ready(place: Path) -> None:
    address, worker = parse(f"unix://{place}/t.sock"), Worker(Fake(), States(place))
    with serving(address, worker) as ready:
        before = [health_of(address.target, name) for name in ("", SERVICE)]
        ready()
        after = [health_of(address.target, name) for name in ("", SERVICE)]
    worker.close()

    assert before == [health_pb2.HealthCheckResponse.NOT_SERVING] * 2
    assert after == [health_pb2.HealthCheckResponse.SERVING] * 2


def test_loopback_serves_too_and_a_port_has_one_trainer(place: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, worker = parse(f"127.0.0.1:{port}"), Worker(Fake(), States(place))
    with serving(address, worker):
        assert body_of(ask(address)) == b"train 1"
        with pytest.raises(InputError, match=f"127.0.0.1:{port}: cannot be listened on"), serving(address, worker):
            pass
    worker.close()


def test_each_answer_is_one_line_in_the_log(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedpeft")
    with running(Fake()) as address:
        ask(address, client=3)

    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("answered")]
    assert line.startswith("answered type=train run=7 client=3 bytes_in=4 failed=False repeated=False seconds=")
