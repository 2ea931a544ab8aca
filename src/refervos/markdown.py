"""Markdown tables that also read well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from refervos.safe_text import one_line

NONE = "-"
"""What stands where there is no number."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, the others to the right.

    Args:
        header: Names of the C columns.
        rows: C cells each.

    Returns:
        Lines of equal width, without a line break at the end; what is in a cell stays in it and is safe to show.
    """
    header, *rows = [[one_line(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    # Two at least: a rule is a dash and a colon.
    widths = [max(2, *(len(row[column]) for row in (header, *rows))) for column in range(len(header))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (header, *rows)
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (aligned[0], rule, *aligned[1:]))


def number(value: float | None) -> str:
    """A percentage with one decimal."""
    return NONE if value is None else f"{value:.1f}"
