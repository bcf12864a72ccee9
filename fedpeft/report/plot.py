"""Small pictures as SVG elements: lines over the rounds, and a bar for each client's share."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from fedpeft.report.text import as_number
from fedpeft.report.watch import Share, clients_of

__all__ = ["PALETTE", "element", "line_plot", "partition_plot"]

PALETTE = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f", "#edc948", "#76b7b2", "#ff9da7", "#bab0ac")

Point = tuple[float, float]

_WIDTH, _HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 28


def element(tag: str, *children: Element | str, **attributes: Any) -> Element:
    """Build an element; text and attributes are escaped when it is written. ``class_`` stands for ``class``."""
    built = Element(tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            built.append(child)
        else:
            built.text = (built.text or "") + child
    return built


def line_plot(
    title: str,
    series: Mapping[str, Sequence[Point]],
    words: Callable[[float], str] = as_number,
    *,
    across: str = "round",
) -> Element:
    """Draw series over the rounds, or what ``across`` names; words says a value on the axis."""
    points = [point for line in series.values() for point in line]
    x_range = _range([x for x, _ in points])
    y_range = _range([y for _, y in points])

    def place(point: Point) -> Point:
        return (
            _LEFT + _share(point[0], x_range) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - _share(point[1], y_range) * (_HEIGHT - _TOP - _BOTTOM),
        )

    drawing = [*_x_axis(x_range, place, across), *_y_axis(y_range, place, words)]
    for index, (name, line) in enumerate(series.items()):
        drawing.append(_line(name, line, PALETTE[index % len(PALETTE)], place, words))
    return _figure(title, _svg(title, drawing), list(series))


def partition_plot(shares: Sequence[Share]) -> Element:
    """Draw one bar a client, as high as its examples are many, cut by label; of many clients those listed."""
    num_clients, shares = clients_of(shares), [share for share in shares if "num_clients" not in share]
    labels = list(dict.fromkeys(label for share in shares for label in share.get("labels", {})))
    most = max(int(share["num_examples"]) for share in shares)
    width = (_WIDTH - _LEFT - _RIGHT) / len(shares)
    bars = [_bar(share, labels, _LEFT + index * width, width, most) for index, share in enumerate(shares)]
    axis = _y_axis((0.0, float(max(most, 1))), lambda point: (_LEFT, _bar_top(point[1], most)), as_number)
    listed = "" if len(shares) == num_clients else f"the first {len(shares)} of "
    title = f"examples of {listed}{num_clients} clients"
    return _figure(title, _svg(title, [*axis, *bars]), labels[: len(PALETTE)])


def _figure(title: str, drawing: Element, names: Sequence[str]) -> Element:
    keys = [
        element("span", element("i", style=f"background:{PALETTE[index % len(PALETTE)]}"), element("b", name))
        for index, name in enumerate(names)
    ]
    return element("figure", element("figcaption", title), drawing, element("div", *keys, class_="legend"))


def _svg(title: str, drawing: Sequence[Element]) -> Element:
    return element("svg", *drawing, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)


def _line(
    name: str, line: Sequence[Point], colour: str, place: Callable[[Point], Point], words: Callable[[float], str]
) -> Element:
    spots = [place(point) for point in line]
    path = element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in spots), fill="none", stroke=colour)
    dots = [
        element("circle", element("title", f"{name}, round {point[0]:g}: {words(point[1])}"), **_at(spot), r=2.5)
        for point, spot in zip(line, spots, strict=True)
    ]
    return element("g", path, *dots, fill=colour, stroke_width=1.5)


def _at(spot: Point) -> dict[str, str]:
    return {"cx": f"{spot[0]:.1f}", "cy": f"{spot[1]:.1f}"}


def _bar(share: Share, labels: Sequence[str], left: float, width: float, most: int) -> Element:
    """Stack the labels of one client, or draw one block where there are none."""
    counts: Mapping[str, int] = share.get("labels") or {"examples": share["num_examples"]}
    blocks, below = [element("title", f"client {share['client']}: {share['num_examples']} examples")], 0
    for name, count in counts.items():
        colour = PALETTE[(labels.index(name) if name in labels else 0) % len(PALETTE)]
        top, bottom = _bar_top(below + count, most), _bar_top(below, most)
        size = {"width": f"{max(width * 0.85, 0.5):.2f}", "height": f"{bottom - top:.2f}"}
        blocks.append(element("rect", x=f"{left:.2f}", y=f"{top:.2f}", fill=colour, **size))
        below += count
    return element("g", *blocks)


def _bar_top(count: float, most: int) -> float:
    return _HEIGHT - _BOTTOM - count / max(most, 1) * (_HEIGHT - _TOP - _BOTTOM)


def _x_axis(bounds: tuple[float, float], place: Callable[[Point], Point], across: str) -> list[Element]:
    ticks = [tick for tick in _ticks(*bounds) if across != "round" or tick == int(tick)]
    drawn = [
        element("text", f"{tick:g}", x=f"{place((tick, 0))[0]:.1f}", y=_HEIGHT - 10, text_anchor="middle")
        for tick in ticks
    ]
    return [*drawn, element("text", across, x=_LEFT - 8, y=_HEIGHT - 10, text_anchor="end")]


def _y_axis(
    bounds: tuple[float, float], place: Callable[[Point], Point], words: Callable[[float], str]
) -> list[Element]:
    drawn = []
    for tick in _ticks(*bounds):
        y = f"{place((0, tick))[1]:.1f}"
        drawn.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        drawn.append(element("text", words(tick), x=_LEFT - 6, y=y, dy="0.32em", text_anchor="end"))
    return drawn


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return bounds that are never equal."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    size = max(abs(low), abs(high))
    pad = max(0.5, 0.1 * size)
    return (low, high) if high - low > 1e-9 * size else (low - pad, high + pad)


def _share(value: float, bounds: tuple[float, float]) -> float:
    return (value - bounds[0]) / (bounds[1] - bounds[0])


def _ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers between two bounds."""
    rough = (high - low) / 7
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude >= rough)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
