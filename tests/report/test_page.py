"""The page is whole in itself: well formed, escaped, without a script or an outside address."""

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from fedpeft.config import Experiment
from fedpeft.report.page import report_page
from fedpeft.report.plot import line_plot, partition_plot
from fedpeft.report.record import Failure, RoundRecord
from fedpeft.report.summary import summarise

SHARES = [
    {"client": 0, "num_examples": 120, "labels": {"bad": 60, "good": 60}},
    {"client": 1, "num_examples": 0, "labels": {}},
    {"client": 2, "num_examples": 80, "labels": {"good": 80}},
]
VOID = {"meta"}


class _Reader(HTMLParser):
    """Collects tags and attributes, and asserts that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(experiment: Experiment, records: list[RoundRecord], shares: list[dict[str, Any]]) -> _Reader:
    page = report_page(experiment, records, shares, summarise(experiment, records, adapter_digest="d"))
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_well_formed_and_shows_the_run(experiment: Experiment, records: list[RoundRecord]) -> None:
    reader = _read(experiment, records, SHARES)
    for shown in ("tiny", "last accuracy", "no reply in 5 s", "train.learning_rate", "0.001", "examples of 3 clients"):
        assert shown in reader.text


def test_the_page_needs_no_network_and_no_script(experiment: Experiment, records: list[RoundRecord]) -> None:
    reader = _read(experiment, records, SHARES)
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in reader.tags)
    names = {name for _, attributes in reader.tags for name in attributes}
    assert {"src", "href", "xlink:href", "srcset"}.isdisjoint(names)
    assert not any(name.startswith("on") for name in names)


def test_words_from_outside_are_escaped(make_experiment: Callable[..., Experiment]) -> None:
    bad = "<script>alert(1)</script>\"'&"
    experiment = make_experiment(model={"name": "third_party.part", "note": bad})
    failure = Failure(client=0, reason=bad)
    records = [RoundRecord(round=1, clients=(0,), failures=(failure,), metrics={bad: 0.5})]
    reader = _read(experiment, records, [{"client": 0, "num_examples": 1, "labels": {bad: 1, "\ud800": 1}}])
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.text.count(bad) >= 4


def test_a_curve_has_one_point_for_each_round(experiment: Experiment, records: list[RoundRecord]) -> None:
    reader = _read(experiment, records, SHARES)
    lines = [str(attributes["points"]).split() for tag, attributes in reader.tags if tag == "polyline"]
    accuracy, held_out, training, up, down = lines
    assert [len(line) for line in (accuracy, held_out, up, down)] == [len(records)] * 4
    assert len(training) == len(records) - 1
    assert sum(tag == "circle" for tag, _ in reader.tags) == sum(map(len, lines))


def test_higher_values_are_drawn_higher_and_inside_the_picture() -> None:
    plot = line_plot("loss", {"held out": [(0, 3.0), (1, 1.0), (2, 2.0)]})
    spots = [tuple(map(float, spot.split(","))) for spot in plot.find(".//polyline").get("points").split()]  # type: ignore[union-attr]
    assert [x for x, _ in spots] == sorted(x for x, _ in spots)
    assert spots[0][1] < spots[2][1] < spots[1][1]
    assert all(0 <= x <= 460 and 0 <= y <= 220 for x, y in spots)


@pytest.mark.parametrize("line", [[(0, 1.0)], [(0, 0.0), (1, 0.0)], [(5, 1e300), (6, 1e300)], [(0, 1e-320), (1, 0.0)]])
def test_a_flat_or_single_or_extreme_curve_is_drawn(line: list[tuple[float, float]]) -> None:
    assert len(line_plot("x", {"a": line}).findall(".//circle")) == len(line)


def test_the_partition_has_a_block_for_each_label_of_each_client() -> None:
    blocks = partition_plot(SHARES).findall(".//rect")
    assert len(blocks) == 4
    heights = [float(block.get("height", "nan")) for block in blocks]
    assert heights[0] == heights[1] == pytest.approx(90.0)
    assert heights[3] == pytest.approx(120.0)


def test_unlabelled_shares_are_drawn_as_one_block() -> None:
    assert (
        len(partition_plot([{"client": 0, "num_examples": 5}, {"client": 1, "num_examples": 3}]).findall(".//rect"))
        == 2
    )


def test_a_run_without_rounds_has_a_page(experiment: Experiment) -> None:
    assert "Failures" not in _read(experiment, [], []).text


def test_of_many_clients_those_listed_are_drawn() -> None:
    rest = {"client": "2 to 99", "num_clients": 98, "num_examples": 900, "labels": {}}
    drawn = partition_plot([{"client": 0, "num_examples": 5}, {"client": 1, "num_examples": 3}, rest])
    assert len(drawn.findall(".//rect")) == 2
    assert drawn.findtext("figcaption") == "examples of the first 2 of 100 clients"
