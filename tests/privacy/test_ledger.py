"""The ledger: ahead of the release, never back, whole or refused."""

from pathlib import Path
from typing import Any

import pytest

from fedpeft.config import Privacy, Rounds, Train
from fedpeft.errors import ResumeError, RunError
from fedpeft.privacy.ledger import Charge, Ledger
from fedpeft.privacy.mechanism import Mechanism, mechanism


def of(unit: str, clients_per_round: int | None = None, **options: Any) -> Mechanism:
    own = {"sample_rate": 0.1} if unit == "example" else {}
    table = {"unit": unit, "delta": 1e-5, "clip": 1.0, "noise_multiplier": 2.0, "accountant": "rdp", **own, **options}
    rounds, train = Rounds(num_rounds=3, clients_per_round=clients_per_round), Train(local_steps=2)
    return mechanism(Privacy.model_validate(table), train=train, rounds=rounds, num_clients=4)


def charge(number: int, *clients: int, inputs: str = "x") -> Charge:
    return Charge(round=number, clients=clients, inputs=inputs)


def test_of_examples_the_client_charged_most_counts_and_of_clients_every_round(tmp_path: Path) -> None:
    for unit, expected in (("example", [1, 1, 2]), ("client", [1, 2, 3])):
        ledger = Ledger(tmp_path / unit)
        asked = [charge(1, 0, 1), charge(2, 2), charge(3, 1, 2)]
        assert [ledger.charge(each, of(unit)) for each in asked] == expected
        assert ledger.charges() == tuple(asked)


def test_of_known_cohorts_the_client_asked_most_counts(tmp_path: Path) -> None:
    made, ledger = of("client", cohorts="known", clients_per_round=2), Ledger(tmp_path / "ledger")
    assert [ledger.charge(charge(n, *who), made) for n, who in enumerate(((0, 1), (2, 3), (1, 2)), 1)] == [1, 1, 2]
    assert ledger.charged_rounds(made.privacy) == 2


def test_a_round_beyond_the_budget_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for number in (1, 2, 3):
        ledger.charge(charge(number, 0), of("example"))
    before = ledger.path.read_bytes()

    with pytest.raises(RunError, match="4th charged"):
        ledger.charge(charge(4, 0, 1), of("example"))

    assert ledger.path.read_bytes() == before
    assert ledger.charge(charge(4, 1), of("example")) == 3


def test_a_repeated_round_is_charged_again_unless_it_is_the_same_release(tmp_path: Path) -> None:
    for noise, expected in (("secure", 2), ("reproducible", 1)):
        ledger, made = Ledger(tmp_path / noise), of("example", noise=noise)
        ledger.charge(charge(1, 0), made)
        assert ledger.charge(charge(1, 0), made) == expected
        assert ledger.charge(charge(1, 0, inputs="y"), made) == expected + 1


def test_a_ledger_that_lacks_what_a_checkpoint_knew_of_is_refused_and_one_that_went_on_is_not(tmp_path: Path) -> None:
    ledger, empty = Ledger(tmp_path / "ledger"), Ledger(tmp_path / "none")
    assert (empty.mark(), ledger.mark()) == ("", "")
    for number in (1, 2):
        ledger.charge(charge(number, 0, 1), of("client"))
    mark, whole = ledger.mark(), ledger.path.read_bytes()
    ledger.require(mark)
    ledger.charge(charge(2, 0, 1, inputs="again"), of("client", noise_multiplier=9.0))
    ledger.require(mark)
    ledger.require("")

    lines = whole.splitlines(keepends=True)
    for damaged in (b"", lines[0], lines[0] * 2, lines[1] + lines[0], whole.replace(b'"round":1', b'"round":3')):
        ledger.path.write_bytes(damaged)
        with pytest.raises(ResumeError, match=r"which had 2 charge\(s\), and [012] are here.*put the file back"):
            ledger.require(mark)
    ledger.path.unlink()
    with pytest.raises(ResumeError, match="not known"):
        ledger.require(mark)


def test_a_torn_line_was_no_release_and_is_written_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.charge(charge(1, 0), of("example"))
    whole = ledger.path.read_bytes()
    for cut in range(1, len(whole)):
        ledger.path.write_bytes(whole + whole[:cut])
        assert ledger.charges() == (charge(1, 0),)
    assert ledger.charge(charge(2, 0), of("example")) == 2
    assert ledger.charges() == (charge(1, 0), charge(2, 0))


@pytest.mark.parametrize("damage", [b"{}\n", b"no json\n", b'{"clients":[0],"inputs":"x","round":1.0}\n', b"\xff\n"])
def test_a_damaged_ledger_stops_everything(tmp_path: Path, damage: bytes) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.path.write_bytes(damage)
    with pytest.raises(ResumeError, match=r"ledger:1: damaged privacy ledger .* not known"):
        ledger.charge(charge(1, 0), of("example"))
    assert ledger.path.read_bytes() == damage
