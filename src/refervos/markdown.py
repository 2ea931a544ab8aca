"""Markdown tables that also read well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from refervos.safe_text import one_line

NONE = "-"
"""Placeholder for a missing number."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table: the first column is left-aligned, the others right-aligned.

    Args:
        header: Names of the C columns.
        rows: C cells each.

    Returns:
        Lines of equal width, without a final line break; cells are escaped and safe to print.
    """
    header, *rows = [[one_line(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    # At least two: the rule is a dash and a colon.
    widths = [max(2, *(len(row[column]) for row in (header, *rows))) for column in range(len(header))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (header, *rows)
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (aligned[0], rule, *aligned[1:]))


def number(value: float | None) -> str:
    """Format a percentage with one decimal."""
    return NONE if value is None else f"{value:.1f}"
