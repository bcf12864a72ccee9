"""A client that hangs costs two deadlines, then none for a while; what is counted are the records."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.app import Context, Message

from fedpeft.client import Node, client_app
from fedpeft.engines.inline import InlineGrid
from fedpeft.errors import ConfigError
from fedpeft.report.record import Failure, RoundRecord
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds.score import Score
from fedpeft.server import serve
from fedpeft.training.workbench import assemble
from tests.conftest import tiny
from tests.e2e.test_inline import digest, lines


def record(number: int, **codes: str) -> RoundRecord:
    failures = tuple(Failure(client=int(name[1:]), code=code, reason="x") for name, code in codes.items())  # type: ignore[arg-type]
    return RoundRecord(round=number, clients=(0, 1, 2), failures=failures)


def test_two_silent_deadlines_in_a_row_and_then_it_rests() -> None:
    score = Score(3)
    for number, codes in enumerate(({"c1": "late"}, {"c1": "lost"}, {"c1": "late"}, {"c1": "late", "c2": "late"}), 1):
        assert score.awake((0, 1, 2), number) == (0, 1, 2)
        score.add([record(number, **codes)])
    for number in (5, 6, 7):
        assert score.awake((0, 1, 2), number) == (0, 2)
        assert [reply.client for reply in score.resting((0, 1, 2), number)] == [1]
        score.add([record(number, c1="skipped")])
    assert score.awake((0, 1, 2), 8) == (0, 1, 2)
    score.add([record(8, c1="late")])
    assert score.awake((0, 1, 2), 9) == (0, 2), "one more is enough, as it has never answered since"
    score.add([record(9, c1="skipped"), record(10, c1="skipped"), record(11, c1="skipped"), record(12)])
    assert score.awake((0, 1, 2), 13) == (0, 1, 2)


def test_without_the_setting_all_are_always_asked() -> None:
    score = Score()
    score.add([record(1, c1="late"), record(2, c1="late")])
    assert score.awake((0, 1), 3) == (0, 1)


class KilledError(Exception):
    """Stands in for kill -9."""


class Silent(InlineGrid):
    """Client 1's updates never come."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = [self._queued[name][0] for name in message_ids if name in self._queued]  # groups of one
        silent = [each for each in asked if each.metadata.dst_node_id == 2 and each.metadata.message_type == "train"]
        return super().pull_messages([each.metadata.message_id for each in asked if each not in silent])


def run(out: Path, *, until: int = 9, **output: str) -> list[tuple[int, str]]:
    """Serve four rounds, or until one is asked; return round and code of each failure."""
    rounds = {"num_rounds": 4, "timeout_seconds": 0.3, "rest_rounds": 1}
    bench = assemble(tiny(rounds=rounds, train={"local_steps": 1}, output={"directory": str(out), **output}))
    place, resume = RunDirectory.prepare(bench.experiment)
    app = client_app(Node(experiment=lambda _: bench.experiment, workbench=lambda *_: bench))

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and int(message.metadata.group_id) >= until:
            raise KilledError
        return app(message, context)

    with suppress(KilledError):
        serve(Silent(answer, num_clients=3), bench, place, resume=resume)
    rows = lines(out)[1:]
    assert all([f["client"] for f in row["failures"]] == [1] for row in rows)
    return [(row["round"], row["failures"][0]["code"]) for row in rows]


def test_a_silent_client_costs_two_deadlines_and_a_resumed_run_leaves_the_same_one_alone(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert whole == [(1, "late"), (2, "late"), (3, "skipped"), (4, "late")]
    assert run(tmp_path / "run", until=3) == whole[:2]
    assert run(tmp_path / "run", if_exists="resume") == whole
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def test_with_privacy_it_is_refused(tmp_path: Path) -> None:
    privacy = {"unit": "client", "noise_multiplier": 1.0, "delta": 1e-5, "clip": 1.0}
    with pytest.raises(ConfigError, match=r"rounds\.rest_rounds = 2: with \[privacy\]"):
        tiny(tmp_path, rounds={"rest_rounds": 2}, privacy=privacy, strategy={"name": "fedavg", "weighting": "uniform"})
