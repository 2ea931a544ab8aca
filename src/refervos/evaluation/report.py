"""An evaluation on one page: tables, plots and pictures in a single HTML file without scripts or links."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.errors import require_installed
from refervos.evaluation.bootstrap import Interval
from refervos.evaluation.contact_sheets import HOW_TO_READ, draw_expression
from refervos.evaluation.datasets import OpenPart
from refervos.evaluation.expressions import ExpressionResult, Scores
from refervos.evaluation.plots import histogram, intervals
from refervos.evaluation.predictions import Predictions, png
from refervos.evaluation.summary import Group, Grouping, Summary
from refervos.files.writing import prepare_folder, write_atomically
from refervos.safe_text import printable

MOST_GROUPS = 12
"""How many groups a plot shows."""


def require_packages() -> None:
    """Check that what the report is made with is installed, before hours of work.

    Raises:
        MissingDependencyError: Names what is missing.
    """
    require_installed("the report", "eval", "jinja2", "matplotlib")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found, and what it is about.

    Attributes:
        summary: The tables.
        part: The data set.
        predictions: The masks.
    """

    summary: Summary
    part: OpenPart
    predictions: Predictions

    def write(self, folder: Path) -> list[Path]:
        """Write the tables and the report; files of the same names are replaced.

        Args:
            folder: Created when absent.

        Returns:
            ``expressions.csv``, ``summary.md``, ``summary.json`` and ``report.html``.

        Raises:
            DataError: When a frame or mask for the pictures cannot be read.
            MissingDependencyError: When what the report is made with is not installed.
            OutputError: When a file cannot be written.
        """
        require_packages()
        prepare_folder(folder)
        contents = {
            "expressions.csv": self.summary.csv(),
            "summary.md": self.summary.markdown() + "\n",
            "summary.json": json.dumps(self.summary.to_json(), indent=1) + "\n",
            "report.html": html_report(self),
        }
        for name, text in contents.items():
            write_atomically(folder / name, text.encode("utf-8", "replace"))
        return [folder / name for name in contents]


def html_report(evaluation: Evaluation) -> str:
    """Draw up the page.

    Args:
        evaluation: What is reported.

    Returns:
        A whole HTML document; everything that comes from the data set is escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def safe(value: Any) -> Any:
        """Text from outside, in which nothing is hidden or reordered; what is markup already stays."""
        return value if isinstance(value, Markup) else printable(str(value))

    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=folder, autoescape=True, finalize=safe, undefined=StrictUndefined)
    page: str = pages.get_template("report.html").render(
        summary=evaluation.summary,
        plots=_plots(evaluation.summary),
        worst=_worst(evaluation),
        how_to_read=HOW_TO_READ,
    )
    return page + "\n"


def _plots(summary: Summary) -> Iterator[str]:
    yield histogram([100 * scores.j_and_f for _, scores in summary.scored], "expressions by J&F")
    headline = next(iter(summary.groups[0].values))
    about: dict[Grouping, str] = {"length": "length of the video", "size": "size of the target", "kind": "kind"}
    for by, words in about.items():
        groups = summary.grouped(by)
        if len(groups) > MOST_GROUPS:
            words += f", the {MOST_GROUPS} largest groups of {len(groups)}"
            groups = sorted(groups, key=lambda group: -group.count)[:MOST_GROUPS]
        if groups:
            yield intervals([_bar(group) for group in groups], f"{headline} by {words}")


def _bar(group: Group) -> tuple[str, int, Interval | None]:
    return group.name.removesuffix(" of the frame"), group.count, group.headline


def _worst(evaluation: Evaluation) -> Iterator[tuple[ExpressionResult, Scores, str]]:
    """The expressions that were answered worst, with a picture of each in base 64."""
    samples = {sample.key: sample for sample in evaluation.part.samples()}
    for result, scores in evaluation.summary.worst:
        sample = samples[result.video, result.expression_id]
        yield result, scores, base64.b64encode(png(draw_expression(sample, evaluation.predictions))).decode()
