"""The page a run leaves: one HTML file with pictures inside, readable without a network or scripts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, indent, tostring

from fedpeft.config import Experiment
from fedpeft.report.lines import headline
from fedpeft.report.plot import Point, element, line_plot, partition_plot
from fedpeft.report.record import RoundRecord
from fedpeft.report.text import as_bytes, as_number, as_seconds, flatten
from fedpeft.report.watch import Share

__all__ = ["report_page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.tiles, .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.tiles div { padding: .5rem 1rem; border: 1px solid #8884; border-radius: .4rem; }
.tiles b { display: block; font-size: 1.25rem; }
figure { margin: 0; flex: 1 1 26rem; }
figcaption { font-weight: 600; }
svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: currentColor; }
svg .grid { stroke: #8884; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .85rem; }
.legend i { display: inline-block; width: .7em; height: .7em; margin-right: .35em; border-radius: 2px; }
.legend b { font-weight: 400; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .15rem 1rem .15rem 0; border-bottom: 1px solid #8883; vertical-align: top; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
"""


def report_page(
    experiment: Experiment, records: Sequence[RoundRecord], shares: Sequence[Share], summary: Mapping[str, Any]
) -> str:
    """Return the whole page; everything shown is escaped."""
    body = element(
        "body",
        element("h1", experiment.name),
        element("p", f"{experiment.adapter.name}, {experiment.strategy.name}, {experiment.task.name}"),
        element("div", *_tiles(summary), class_="tiles"),
        element("h2", "Rounds"),
        element("div", *_plots(records), class_="plots"),
        *_section("Failures", ("round", "client", "reason"), _failures(records)),
        *_partition(shares),
        *_section("Experiment", ("key", "value"), flatten(experiment.table())),
        *(_section("Privacy", ("what", "holds"), _told(summary)) if "privacy" in summary else ()),
        *_section("Made with", ("package", "version"), summary["versions"].items()),
    )
    page = element("html", _head(experiment.name), body, lang="en")
    indent(page, space="")
    text = tostring(page, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n".encode("utf-8", "replace").decode()


def _head(title: str) -> Element:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("title", f"{title} - fedpeft"),
        element("style", _STYLE),
    )


def _told(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), f"{value}") for name, value in summary["privacy"].items()]


def _tiles(summary: Mapping[str, Any]) -> list[Element]:
    tiles = {
        "rounds": str(summary["num_rounds"]),
        "bytes up": as_bytes(summary["bytes_up"]),
        "bytes down": as_bytes(summary["bytes_down"]),
        "time": as_seconds(summary["seconds"]),
        "failed replies": str(summary["num_failures"]),
    }
    last = summary["last"]["metrics"] if summary["last"] else {}
    name = headline(last)
    reached = {f"last {name}": as_number(last[name])} if name else {}
    return [element("div", element("b", value), element("span", key)) for key, value in {**reached, **tiles}.items()]


def _plots(records: Sequence[RoundRecord]) -> list[Element]:
    names = {"loss", *(name for record in records for name in (*record.metrics, *record.client_metrics))}
    first = headline(names)
    plots = [_metric_plot(name, records) for name in sorted(names, key=lambda name: (name != first, name))]
    return [*(plot for plot in plots if plot is not None), line_plot("bytes so far", _bytes(records), as_bytes)]


def _metric_plot(name: str, records: Sequence[RoundRecord]) -> Element | None:
    series: dict[str, list[Point]] = {
        "held out": [(record.round, record.metrics[name]) for record in records if name in record.metrics],
        "on clients": [
            (record.round, record.client_metrics[name]) for record in records if name in record.client_metrics
        ],
        "training": [(r.round, r.train_loss) for r in records if name == "loss" and r.train_loss is not None],
    }
    drawn = {key: points for key, points in series.items() if points}
    return line_plot(name, drawn) if drawn else None


def _bytes(records: Sequence[RoundRecord]) -> dict[str, list[Point]]:
    up, down, total_up, total_down = [], [], 0, 0
    for record in records:
        total_up, total_down = total_up + record.bytes_up, total_down + record.bytes_down
        up.append((float(record.round), float(total_up)))
        down.append((float(record.round), float(total_down)))
    return {"up": up, "down": down}


def _failures(records: Sequence[RoundRecord]) -> list[tuple[int, int, str]]:
    return [(record.round, failure.client, failure.reason) for record in records for failure in record.failures]


def _partition(shares: Sequence[Share]) -> list[Element]:
    if not shares or any(share["num_examples"] is None for share in shares):
        return []
    return [element("h2", "Partition"), element("div", partition_plot(shares), class_="plots")]


def _section(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[Element]:
    """Return a heading and a table, or nothing when there are no rows."""
    lines = [element("tr", *(element("td", str(cell)) for cell in row)) for row in rows]
    if not lines:
        return []
    top = element("tr", *(element("th", name) for name in head))
    return [element("h2", title), element("table", element("thead", top), element("tbody", *lines))]
