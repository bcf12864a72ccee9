"""Figures read the same everywhere, and long partitions are cut short."""

import pytest

from fedpeft.report.lines import headline, partition_rows, round_words
from fedpeft.report.record import Failure, RoundRecord
from fedpeft.report.text import as_bytes, as_number, as_seconds, flatten, one_line


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_900, "1 MB"), (2_000_000_000, "2 GB"), (5e15, "5,000.0 TB")],
)
def test_bytes_have_three_digits_and_a_unit(count: float, text: str) -> None:
    assert as_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (59.97, "1 min 00 s"), (245, "4 min 05 s"), (7620, "2 h 07 min")]
)
def test_seconds_grow_into_minutes_and_hours(seconds: float, text: str) -> None:
    assert as_seconds(seconds) == text


def test_numbers_keep_four_digits_and_large_ones_all() -> None:
    assert (as_number(0.123456), as_number(1e-7), as_number(1234567)) == ("0.1235", "1e-07", "1,234,567")


def test_nested_tables_become_dotted_keys_without_what_is_unset() -> None:
    assert dict(flatten({"a": 1, "b": {"c": None, "d": {"e": [1]}}})) == {"a": 1, "b.d.e": [1]}


def test_control_codes_and_line_breaks_become_spaces() -> None:
    assert one_line("a\nb\x1b[31mc\ud800") == "a b [31mc "


def test_a_failures_reason_is_cleaned_and_cut_where_it_is_made() -> None:
    reason = Failure(client=1, reason="x\x1b\n" + "y" * 900).reason
    assert reason == "x  " + "y" * 497


@pytest.mark.parametrize(
    ("metrics", "first"),
    [(("loss", "f1", "accuracy"), "accuracy"), (("loss", "perplexity"), "perplexity"), (("loss",), "loss"), ((), None)],
)
def test_the_headline_is_the_accuracy_or_what_is_no_loss(metrics: tuple[str, ...], first: str | None) -> None:
    assert headline(metrics) == first


def test_a_long_partition_is_cut_to_twenty_rows_that_still_count_everyone() -> None:
    shares = [{"client": client, "num_examples": 10, "labels": {}} for client in range(100)]
    rows = partition_rows(shares)
    assert len(rows) == 20
    assert rows[0] == ("0", "10", "")
    assert rows[-1] == ("81 more", "810", "")
    assert len(partition_rows(shares[:20])) == 20


def test_an_entry_of_many_clients_counts_as_many() -> None:
    rest = {"client": "1000 to 1999999", "num_clients": 1_999_000, "num_examples": 5_000_000, "labels": {}}
    rows = partition_rows([*({"client": client, "num_examples": 10, "labels": {}} for client in range(1000)), rest])
    assert rows[-1] == ("1999981 more", "5,009,810", "")
    assert len(rows) == 20


def test_many_labels_are_cut_to_six() -> None:
    share = {"client": 0, "num_examples": 10, "labels": {f"l{index}": 1 for index in range(10)}}
    assert partition_rows([share])[0][2] == "l0 1, l1 1, l2 1, l3 1, l4 1, l5 1, 4 more"


def test_an_evaluation_alone_says_nothing_of_clients() -> None:
    assert round_words(RoundRecord(round=0, metrics={"loss": 1.0}, seconds={"evaluate": 0.5})) == ["loss 1", "0.5 s"]
