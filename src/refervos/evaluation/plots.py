"""Two kinds of plots as SVG for an HTML page without scripts."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from refervos.evaluation.bootstrap import Interval
from refervos.safe_text import printable

WIDTH, HEIGHT = 4.6, 2.6
"""Size of a plot in inches; the page scales it to the available width."""

BINS = 20
BLUE, GREY = "#0072b2", "#888888"


def histogram(values: Sequence[float], title: str) -> str:
    """Plot the number of values in each twentieth of 0 to 100.

    Args:
        values: In percent, at least one.
        title: Title of the plot.

    Returns:
        An ``svg`` element.
    """
    axes = _axes(title)
    counts, _, bars = axes.hist(values, bins=BINS, range=(0, 100), color=BLUE, rwidth=0.9)
    axes.bar_label(bars, [f"{count:.0f}" if count else "" for count in counts], fontsize=7)
    axes.set_xlim(0, 100)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _svg(axes.figure)


def intervals(groups: Sequence[tuple[str, int, Interval | None]], title: str) -> str:
    """Plot the mean and interval of each group, from 0 to 100.

    Args:
        groups: Name, number of members, and mean; at least one.
        title: Title of the plot.

    Returns:
        An ``svg`` element.
    """
    axes = _axes(title, width=max(WIDTH, 0.7 * len(groups)))
    for position, (_, _, interval) in enumerate(groups):
        if interval is not None:
            axes.plot([position, position], [interval.low, interval.high], color=BLUE, linewidth=2, gid="whisker")
            axes.plot([position], [interval.mean], "o", color=BLUE)
            offset: Any = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"{interval.mean:.1f}", (position, interval.mean), fontsize=8, color=GREY, **offset)
    names = ["\n".join([*textwrap.wrap(printable(name), 12)[:2], f"n = {count}"]) for name, count, _ in groups]
    axes.set_xticks(range(len(groups)), names, parse_math=False)
    axes.set(xlim=(-0.5, len(groups) - 0.5), ylim=(0, 100))
    return _svg(axes.figure)


def _axes(title: str, width: float = WIDTH) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, HEIGHT), layout="constrained")  # not pyplot, which keeps figures in a global list
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#dddddd")
    return axes


def _svg(figure: Any) -> str:
    """Render a figure as an ``svg`` element: reproducible, with its text as text and without external links."""
    from matplotlib import rc_context

    drawing = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "refervos"}), warnings.catch_warnings(action="ignore"):
        figure.savefig(drawing, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = drawing.getvalue()
    return re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", text[text.index("<svg") :])
