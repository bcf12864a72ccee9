"""A round's line survives the file and refuses everything else."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import ResumeError, RunError
from fedpeft.report.record import Failure, RoundRecord

counts = st.integers(min_value=0, max_value=2**63)
numbers = st.floats(allow_nan=False, allow_infinity=False)
named = st.dictionaries(st.text(), numbers, max_size=3)
drawn_records = st.builds(
    RoundRecord,
    round=counts,
    clients=st.lists(counts, max_size=3).map(tuple),
    failures=st.lists(st.builds(Failure, client=counts, reason=st.text()), max_size=2).map(tuple),
    train_loss=st.none() | numbers,
    metrics=named,
    client_metrics=named,
    bytes_up=counts,
    bytes_down=counts,
    bytes_up_fp32=counts,
    bytes_down_fp32=counts,
    bytes_up_bound=st.none() | counts,
    seconds=named,
)


@given(drawn_records)
def test_every_record_survives_its_line(record: RoundRecord) -> None:
    line = record.to_json()
    assert "\n" not in line
    assert RoundRecord.from_json(line) == record
    assert RoundRecord.from_json(line).to_json() == line


def test_equal_records_give_equal_lines_whatever_the_order_of_names() -> None:
    one = RoundRecord(round=1, metrics={"loss": 1.0, "accuracy": 0.5})
    other = RoundRecord(round=1, metrics={"accuracy": 0.5, "loss": 1.0})
    assert one.to_json() == other.to_json()


@pytest.mark.parametrize(
    ("change", "named_place"),
    [
        ({"round": -1}, "round"),
        ({"round": "1"}, "round"),
        ({"surprise": 1}, "surprise"),
        ({"clients": [0, True]}, "clients.1"),
        ({"failures": [{"client": 1}]}, "failures.0.reason"),
        ({"metrics": {"loss": None}}, "metrics.loss"),
        ({"bytes_up": 1.5}, "bytes_up"),
    ],
)
def test_a_line_that_is_no_record_is_refused_by_place(change: dict[str, object], named_place: str) -> None:
    line = json.dumps({**json.loads(RoundRecord(round=1).to_json()), **change})
    with pytest.raises(ResumeError, match=named_place):
        RoundRecord.from_json(line)


@pytest.mark.parametrize("line", ["", "{", "[]", '{"round":1,"train_loss":NaN}'])
def test_a_line_that_is_not_even_an_object_is_refused(line: str) -> None:
    with pytest.raises(ResumeError, match="not a round record"):
        RoundRecord.from_json(line)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_an_error_that_names_it(value: float) -> None:
    record = RoundRecord(round=4)
    with pytest.raises(RunError, match=r"round 4: metrics\.loss is"):
        replace(record, metrics={"loss": value})
    with pytest.raises(RunError, match="train_loss"):
        replace(record, train_loss=value)


def test_seconds_add_up_over_the_phases() -> None:
    assert RoundRecord(round=1, seconds={"train": 1.5, "evaluate": 0.5}).total_seconds == 2.0
