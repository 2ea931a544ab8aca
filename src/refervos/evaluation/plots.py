"""Two small plots as SVG text, to stand in an HTML page without any script."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import numpy as np

from refervos.evaluation.bootstrap import Interval
from refervos.safe_text import html as escape

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 30, 58
"""Room around the plot: for the numbers, the title and the names below, in pixels."""

BINS = 20


def histogram(values: Sequence[float], title: str) -> str:
    """How often values fall into each twentieth of 0 to 100.

    Args:
        values: In percent, at least one.
        title: What stands above.

    Returns:
        An ``svg`` element.
    """
    counts, _ = np.histogram(values, bins=BINS, range=(0, 100))
    highest = int(counts.max())
    step = (WIDTH - LEFT - RIGHT) / BINS
    parts = [_text(WIDTH / 2, 18, title, "middle", "title")]
    for count in dict.fromkeys((0, highest // 2, highest)):
        parts += _level(count / highest, str(count))
    for place, count in enumerate(counts):
        top = _y(count / highest)
        shown = f"{100 * place // BINS} to {100 * (place + 1) // BINS}: {count}"
        parts.append(
            f'<rect class="bar" x="{LEFT + place * step + 1:.1f}" y="{top:.1f}" width="{step - 2:.1f}" '
            f'height="{_y(0) - top:.1f}"><title>{shown}</title></rect>'
        )
    for value in range(0, 101, 20):
        parts.append(_text(LEFT + (WIDTH - LEFT - RIGHT) * value / 100, _y(0) + 16, str(value), "middle"))
    return _svg(parts)


def intervals(groups: Sequence[tuple[str, int, Interval | None]], title: str) -> str:
    """A mean with its interval for each of some groups, from 0 to 100.

    Args:
        groups: Name, number of members, and mean; at least one.
        title: What stands above.

    Returns:
        An ``svg`` element.
    """
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    parts = [_text(WIDTH / 2, 18, title, "middle", "title")]
    for value in range(0, 101, 25):
        parts += _level(value / 100, str(value))
    for place, (name, count, interval) in enumerate(groups):
        middle = LEFT + (place + 0.5) * step
        for number, line in enumerate(textwrap.wrap(name, 12)[:2]):
            parts.append(_text(middle, _y(0) + 14 + 12 * number, line, "middle"))
        parts.append(_text(middle, _y(0) + 40, f"n = {count}", "middle", "faint"))
        if interval is not None:
            low, high, mean = (_y(value / 100) for value in (interval.low, interval.high, interval.mean))
            shown = escape(f"{name}: {interval.mean:.1f} ({interval.low:.1f} to {interval.high:.1f})")
            parts.append(f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
            parts.append(
                f'<circle class="mean" cx="{middle:.1f}" cy="{mean:.1f}" r="4.5"><title>{shown}</title></circle>'
            )
    return _svg(parts)


def _y(share: float) -> float:
    """Where a share of the highest value stands."""
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _level(share: float, name: str) -> Iterator[str]:
    """A line across the plot, and its number."""
    yield f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(share):.1f}" y2="{_y(share):.1f}"/>'
    yield _text(LEFT - 6, _y(share) + 4, name, "end")


def _text(x: float, y: float, text: str, anchor: str, style: str = "label") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
