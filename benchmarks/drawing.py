"""Line plots as SVG files beside the results, with style and legend inside."""

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from benchmarks.jobs import ROOT
from fedpeft.report.plot import PALETTE, Point, element, line_plot

__all__ = ["draw"]


def draw(name: str, title: str, series: Mapping[str, Sequence[Point]], across: str = "round") -> None:
    """Write docs/results/NAME.svg: the figure's drawing with style and legend inside."""
    figure = line_plot(title, series, words=lambda value: f"{value:.2g}", across=across)
    drawing = next(child for child in figure if child.tag == "svg")
    drawing.set("xmlns", "http://www.w3.org/2000/svg")
    drawing.insert(0, element("style", "text{font:9px sans-serif;fill:#555}.grid{stroke:#ddd}"))
    for index, line in enumerate(series):
        drawing.append(element("text", line, x=340, y=20 + 12 * index, style=f"fill:{PALETTE[index % len(PALETTE)]}"))
    path = ROOT / "docs" / "results" / f"{name}.svg"
    path.write_bytes(ElementTree.tostring(drawing))
