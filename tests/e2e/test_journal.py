"""A server that is killed within a round goes on with the replies it has, asks the others alone, to the same bits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from fedpeft.client import Node, client_app
from fedpeft.config import Experiment
from fedpeft.engines.inline import InlineGrid, simulate
from fedpeft.engines.start import ready
from fedpeft.errors import ResumeError, RunError
from fedpeft.privacy.ledger import Charge
from fedpeft.report.run_directory import RunDirectory
from fedpeft.rounds import journal
from fedpeft.rounds.journal import Journal
from fedpeft.server import serve
from fedpeft.wire.message import Update
from fedpeft.wire.payload import pack, unpack
from tests.conftest import needed, tiny
from tests.e2e.test_inline import digest, lines

Asked = list[tuple[str, int]]


class KilledError(Exception):
    """Stands in for kill -9: nothing in the server catches it, and nothing after it runs."""


def run(experiment: Experiment, *, die_after: int | None = None, journaled: bool = True) -> Asked:
    """Serve, and stop when so many clients have been asked to train; return whom was asked in which round."""
    bench, place, resume = ready(experiment)
    app, asked = client_app(Node(experiment=lambda _: bench.experiment, workbench=lambda *_: bench)), []

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            if len(asked) == die_after:
                raise KilledError
            asked.append((message.metadata.group_id, int(context.node_config["partition-id"])))
        return app(message, context)

    try:
        serve(InlineGrid(answer, num_clients=4), bench, place, resume=resume, journaled=journaled)
    except KilledError:
        assert die_after is not None
    return asked


def job(out: Path, **changes: Any) -> Experiment:
    shared = {"partition": {"num_clients": 4}, "rounds": {"num_rounds": 2}, "train": {"local_steps": 1}}
    return tiny(out, **{**shared, **changes})


def again(out: Path, **changes: Any) -> Experiment:
    return job(out, **changes, output={"directory": str(out), "if_exists": "resume"})


@pytest.mark.parametrize("died_after", [1, 3, 6])
def test_only_the_missing_are_asked_and_the_bits_are_the_same(tmp_path: Path, died_after: int) -> None:
    run(job(tmp_path / "whole"))
    out = tmp_path / "run"
    before = run(job(out), die_after=died_after)
    round_number = before[-1][0]
    after = run(again(out))

    in_round = [client for number, client in before if number == round_number]
    asked_again = [client for number, client in after if number == round_number]
    assert asked_again == [client for client in range(4) if client not in in_round]
    assert digest(out) == digest(tmp_path / "whole")
    assert lines(out) == lines(tmp_path / "whole")
    assert not (out / "journal").exists()


def test_what_was_torn_is_asked_again_and_what_another_beginning_was_answered_is_not_used(tmp_path: Path) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    simulate(job(whole))
    run(job(out), die_after=3)
    page = out / "journal" / "round_000001"
    torn, other = page / "0-1", page / "1-1"
    torn.write_bytes(torn.read_bytes()[:-1])
    header, body = unpack(journal.from_file(other.read_bytes()), Update)
    envelope = type(header.envelope)(**{**vars(header.envelope), "answers": b"another adapter"})
    other.write_bytes(journal.to_file(pack(type(header)(**{**vars(header), "envelope": envelope}), body)))
    (page / "3-1").write_bytes(b"")
    (page / ".2-1.77.partial").write_bytes(b"half of one, as kill -9 leaves it")
    asked = run(again(out))
    assert [client for number, client in asked if number == "1"] == [0, 1, 3]
    assert digest(out) == digest(whole)


def test_a_page_of_other_inputs_is_thrown_away(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(job(out), die_after=3)
    (out / "journal" / "round_000001" / "inputs").write_text("another state")
    assert [client for number, client in run(again(out)) if number == "1"] == [0, 1, 2, 3]


def test_an_older_servers_reply_counts_and_a_newer_ones_does_not(tmp_path: Path) -> None:
    """Whoever has a token above one's own has taken over: what it took is not this server's to use."""
    out = tmp_path / "run"
    run(job(out), die_after=2)
    page = out / "journal" / "round_000001"
    (page / "0-1").rename(page / "0-9")
    assert [client for number, client in run(again(out)) if number == "1"] == [0, 2, 3]


def test_a_reply_that_is_refused_after_a_restart_was_refused_before_it(tmp_path: Path) -> None:
    """The bound is looked at when a reply's turn comes, whether it came now or lies in the journal."""
    rounds = {"num_rounds": 2, "max_update_norm": 1e-12}
    out = tmp_path / "run"
    run(job(out, rounds=rounds), die_after=2)
    assert len(list((out / "journal" / "round_000001").glob("*-1"))) == 2
    with pytest.raises(RunError, match=r"0 client\(s\) replied[\s\S]*client 0: norm [\s\S]*client 3: norm"):
        run(again(out, rounds=rounds))


def test_where_clients_keep_memories_there_is_no_journal(tmp_path: Path) -> None:
    settings = needed("scaffold", partition={"num_clients": 4}, rounds={"num_rounds": 2})
    out = tmp_path / "run"
    run(tiny(out, **settings), die_after=2)
    assert not (out / "journal").exists()


def test_checkpoints_further_apart_keep_the_pages_that_they_lack(tmp_path: Path) -> None:
    rounds, whole, out = {"num_rounds": 4, "checkpoint_every": 3}, tmp_path / "whole", tmp_path / "run"
    simulate(job(whole, rounds=rounds))
    run(job(out, rounds=rounds), die_after=10)
    assert sorted(path.name for path in (out / "journal").iterdir()) == [f"round_00000{n}" for n in (1, 2, 3)]
    assert run(again(out, rounds=rounds)) == [("3", 2), ("3", 3), *(("4", client) for client in range(4))]
    assert digest(out) == digest(whole)


def test_a_run_with_noise_goes_on_to_the_same_release_and_one_charge(tmp_path: Path) -> None:
    private = {"delta": 1e-5, "accountant": "rdp", "noise": "reproducible", "noise_multiplier": 2.0}
    changes = {
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "privacy": {**private, "unit": "client", "clip": 0.5},
    }
    out, whole = tmp_path / "run", tmp_path / "whole"
    simulate(job(whole, **changes))
    run(job(out, **changes), die_after=6)
    run(again(out, **changes))
    assert digest(out) == digest(whole)
    assert [charge.round for charge in RunDirectory.open(out).ledger.charges()] == [1, 2]


def test_of_noise_that_each_client_adds_only_what_is_asked_again_is_charged_again(tmp_path: Path) -> None:
    """Secure noise is drawn anew by whoever is asked again; the reply that is kept is the release that was charged."""
    private = {"delta": 1e-5, "accountant": "rdp", "noise": "secure", "noise_multiplier": 2.0, "sample_rate": 0.1}
    changes = {
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "privacy": {**private, "unit": "example", "clip": 1.0, "spare_rounds": 2},
        "rounds": {"num_rounds": 1},
    }
    out = tmp_path / "run"
    run(job(out, **changes), die_after=3)
    run(again(out, **changes))
    charges: tuple[Charge, ...] = RunDirectory.open(out).ledger.charges()
    assert [charge.clients for charge in charges] == [(0, 1, 2, 3), (3,)]


def test_a_run_keeps_its_name_when_it_goes_on_and_has_another_when_it_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(job(out), die_after=2)
    names = [(out / "run.id").read_text()]
    run(again(out))
    names.append((out / "run.id").read_text())
    run(job(out, output={"directory": str(out), "if_exists": "overwrite"}))
    names.append((out / "run.id").read_text())
    assert names[0] == names[1] != names[2]
    (out / "run.id").write_text("short")
    with pytest.raises(ResumeError, match=r"run\.id: .*delete it"):
        run(again(out))


def test_what_is_written_is_read_back_or_none(tmp_path: Path) -> None:
    bench, place, _ = ready(job(tmp_path / "run"))
    page = Journal(place.path / "journal").page(1, "inputs")
    record = pack_any(bench.experiment.hash)
    page.write(7, 3, record)
    data = (page.folder / "7-3").read_bytes()
    assert journal.to_file(record) == data
    assert list(page.clients()) == [(7, 3)]
    assert page.read(7, 3) is not None
    for at in range(0, len(data), 7):
        (page.folder / "7-3").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert page.read(7, 3) is None
        (page.folder / "7-3").write_bytes(data[:at])
        assert page.read(7, 3) is None
    shutil.rmtree(place.path)


def pack_any(job_hash: str) -> Any:
    from fedpeft.wire.message import Envelope, Evaluated

    envelope = Envelope(
        job="j", round_number=1, config_hash=job_hash, plan_hash="p", base_hash="b", codec=("none",), fence=3
    )
    return pack(Evaluated(envelope=envelope, client=7, num_examples=1, sums=json.loads('{"loss": 1.0}')))
