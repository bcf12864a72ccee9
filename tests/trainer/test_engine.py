"""The trainer with real parts: the bits of Flower's own process, also after a call that was given up."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from fedpeft.config import Experiment
from fedpeft.engines.apps import flower_client_app
from fedpeft.engines.trainer import Parts, run_trainer
from fedpeft.errors import ConfigError, InputError
from fedpeft.rounds.exchange import Exchange
from fedpeft.rounds.roster import _join
from fedpeft.trainer.message import Question
from fedpeft.trainer.states import States
from fedpeft.trainer.worker import AbandonedError, Call, Worker
from fedpeft.training.workbench import Workbench, assemble
from fedpeft.wire.message import Update
from fedpeft.wire.payload import pack, unpack
from fedpeft.wire.record import content_of
from tests.conftest import needed, tiny
from tests.trainer.conftest import Running, body_of, question, replying
from tests.trainer.light import made

SCAFFOLD = tiny(**needed("scaffold"))


class SentError(Exception):
    """Takes a message out of an exchange."""


def broadcast(bench: Workbench, kind: str, round_number: int = 1) -> RecordDict:
    """Return what the server sends client 0 in a round, as its own code makes it."""
    taken: list[RecordDict] = []

    class Grid:
        def create_message(self, content: RecordDict, *_: object) -> None:
            taken.append(content)
            raise SentError

    state = bench.strategy.init(bench.adapted.attached.slots, bench.adapted.initial)
    exchange = Exchange(grid=Grid(), bench=bench, nodes={0: 1}, state=state, round_number=round_number)  # type: ignore[arg-type]
    with pytest.raises(SentError):
        list(getattr(exchange, kind)([0]))
    return taken[0]


def asking(kind: str, content: RecordDict, experiment: Experiment | None = None, **changes: Any) -> Question:
    values = {
        "message_type": kind,
        "run": 1,
        "node": 1,
        "node_config": {"partition-id": 0},
        "run_config": {"experiment": "e.toml"},
        "experiment": experiment.to_toml() if experiment else None,
        "content": content_of(content),
    }
    return question(**{**values, **changes})


def joining(bench: Workbench) -> RecordDict:
    return pack(_join(bench), bench.adapted.plan.to_bytes())


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return assemble(SCAFFOLD)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(Parts(SCAFFOLD).answer, States(tmp_path))
    yield made
    made.close()


def train(worker: Worker, bench: Workbench, round_number: int = 1) -> bytes:
    content = broadcast(bench, "train", round_number)
    return body_of(worker.ask(asking("train", content), f"{round_number}".encode(), Call()))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "runs").rglob("*")) if path.is_file()}


def test_a_call_given_up_in_the_middle_of_training_leaves_everything_as_it_was(
    worker: Worker, bench: Workbench, tmp_path: Path
) -> None:
    """It ends after one of three batches; the parts are used again and come to the bits of untouched ones."""
    other = Worker(Parts(SCAFFOLD).answer, States(tmp_path / "other"))
    for each in (worker, other):
        assert each.ask(asking("query.join", joining(bench)), b"join", Call()).has_content()
    before, looks = files(tmp_path), []

    class Ending(Call):
        def require(self) -> None:
            looks.append(self)
            if len(looks) == 3:
                self.end()
            super().require()

    with pytest.raises(AbandonedError):
        worker.ask(asking("train", broadcast(bench, "train")), b"1", Ending())

    assert len(looks) == 3
    assert files(tmp_path) == before
    assert [train(worker, bench, number) for number in (1, 2)] == [train(other, bench, number) for number in (1, 2)]
    assert files(tmp_path / "other").keys() > {"round_000001.safetensors", "round_000002.safetensors"}
    other.close()


def test_what_a_call_is_watched_by_is_gone_with_it(worker: Worker, bench: Workbench) -> None:
    parts = Parts(SCAFFOLD)
    worker = Worker(parts.answer, worker._states)
    worker.ask(asking("query.join", joining(bench)), b"join", Call())
    train(worker, bench)
    worker.close()

    assert parts._held is not None
    assert not parts._held[2].adapted.attached.model._forward_pre_hooks


def test_a_trainer_goes_on_after_a_restart_with_what_its_client_knew(
    worker: Worker, bench: Workbench, tmp_path: Path
) -> None:
    """Two rounds in one process, or in two; round 2 begins with the control variate of round 1."""
    parted = [Worker(Parts(SCAFFOLD).answer, States(tmp_path / "parted")) for _ in range(2)]
    forgetful = Worker(Parts(SCAFFOLD).answer, States(tmp_path / "forgetful"))
    for each in (worker, parted[0], forgetful):
        each.ask(asking("query.join", joining(bench)), b"join", Call())
    whole = [train(worker, bench, number) for number in (1, 2)]
    assert [train(each, bench, number) for number, each in enumerate(parted, 1)] == whole
    assert train(forgetful, bench, 2) != whole[1]
    for each in (*parted, forgetful):
        each.close()


def test_the_same_question_is_answered_with_the_same_bytes_though_training_takes_other_times(
    worker: Worker, bench: Workbench
) -> None:
    worker.ask(asking("query.join", joining(bench)), b"join", Call())
    asked = asking("train", broadcast(bench, "train"))
    replies = [worker.ask(asked, b"1", Call()).content for _ in range(2)]

    assert content_of(replies[0]) == content_of(replies[1])
    assert unpack(replies[0], Update)[0].seconds > 0


def test_a_client_that_has_not_joined_is_told_so(worker: Worker, bench: Workbench) -> None:
    reply = worker.ask(asking("train", broadcast(bench, "train")), b"1", Call())
    assert reply.error.reason == "WireError: client 0 has not joined this run; it holds no plan"


def test_a_trainer_that_was_given_an_experiment_takes_no_other(worker: Worker) -> None:
    other = tiny(seed=4)
    reply = worker.ask(asking("query.join", joining(assemble(other)), other), b"join", Call())
    assert "WireError: join: job" in reply.error.reason or "config hash" in reply.error.reason


def test_the_experiment_of_the_app_is_taken_where_none_was_given(tmp_path: Path, bench: Workbench) -> None:
    worker = Worker(Parts().answer, States(tmp_path))
    join = joining(bench)
    missing, bad, good = (
        worker.ask(asking("query.join", join, given, **change), b"", Call())
        for given, change in (
            (None, {}),
            (SCAFFOLD, {"run_config": {"experiment": "e.toml", "override": "train.batch=8"}}),
            (SCAFFOLD, {}),
        )
    )
    worker.close()

    assert "ConfigError: run-config experiment = 'e.toml': the app's bundle holds no such file" in missing.error.reason
    assert "ConfigError: e.toml: train.batch" in bad.error.reason
    assert good.has_content()


def test_with_privacy_no_word_of_an_error_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uniform = {"name": "fedavg", "weighting": "uniform"}
    private = tiny(
        strategy=uniform, privacy={"unit": "example", "epsilon": 8.0, "delta": 1e-3, "clip": 1.0, "sample_rate": 0.2}
    )
    made = assemble(private)
    worker = Worker(Parts(private).answer, States(tmp_path))
    worker.ask(asking("query.join", joining(made)), b"join", Call())

    def failing(*_: object) -> None:
        raise ValueError("a patient's name")

    monkeypatch.setattr(Workbench, "client_examples", failing)
    reply = worker.ask(asking("train", broadcast(made, "train")), b"1", Call())
    worker.close()

    assert re.fullmatch(
        r"gave up; with \[privacy\] the reason stays in the client's own log \(id [0-9a-f]{12}\)", reply.error.reason
    )


FORWARD = """
import sys
from pathlib import Path
from flwr.app import Context, RecordDict
from fedpeft.engines.apps import flower_client_app
from tests.trainer.light import message_of

context = Context(
    run_id=7, node_id=1, node_config={"partition-id": 0, "trainer": sys.argv[1]}, state=RecordDict(), run_config={}
)
reply = flower_client_app(Path("/nowhere"))(message_of(b"body"), context)
assert reply.has_content(), reply.error.reason
assert not context.state
heavy = {"torch", "transformers", "peft", "datasets", "opacus", "safetensors", "sklearn", "pandas"}
print(sorted(heavy & set(sys.modules)))
"""


def test_the_app_that_forwards_imports_no_torch_and_no_model_library(running: Running) -> None:
    with running(lambda _question, message, _context, _call: replying(message, b"x")) as address:
        command = [sys.executable, "-c", FORWARD, str(address)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])

    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_an_app_without_a_trainer_trains_by_itself(tmp_path: Path, bench: Workbench) -> None:
    (tmp_path / "e.toml").write_text(SCAFFOLD.to_toml())
    app = flower_client_app(tmp_path)
    told = {"experiment": "e.toml"}
    context = Context(run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config=told)
    for kind, content in (("query.join", joining(bench)), ("train", broadcast(bench, "train"))):
        reply = app(made(content, kind=kind), context)
        assert reply.has_content(), reply.error.reason

    worker = Worker(Parts(SCAFFOLD).answer, States(tmp_path / "state"))
    worker.ask(asking("query.join", joining(bench)), b"join", Call())
    assert train(worker, bench) == body_of(reply)
    worker.close()


@pytest.mark.parametrize("listen", ["0.0.0.0:9000", "unix://x.sock"])
def test_an_address_that_others_reach_is_refused_before_anything_is_made(tmp_path: Path, listen: str) -> None:
    with pytest.raises(InputError, match="trainer address"):
        run_trainer(listen, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_trainer_whose_data_cannot_be_read_ends_with_the_reason(place: Path) -> None:
    data = {"name": "table", "path": str(place / "none.csv"), "text": "t", "label": "l"}
    model = {"name": "tiny", "architecture": "bert", "hidden_size": 16, "num_layers": 1}
    settings = tiny(data=data, model=model, task={"name": "sequence_classification"})
    with pytest.raises(InputError, match=r"none\.csv"):
        run_trainer(f"unix://{place}/t.sock", place / "state", settings)
    assert not (place / "t.sock").exists()


def test_an_override_that_cannot_be_split_is_named() -> None:
    broken = question(experiment=SCAFFOLD.to_toml(), run_config={"override": "'"})
    with pytest.raises(ConfigError, match="No closing quotation"):
        Parts()._experiment(broken)
