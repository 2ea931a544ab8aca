"""Report of an evaluation: tables, plots and images in a single HTML file without scripts or links."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.errors import require_installed
from refervos.evaluation.bootstrap import Interval
from refervos.evaluation.contact_sheets import LEGEND, draw_expression
from refervos.evaluation.datasets import OpenPart
from refervos.evaluation.expression_scores import ExpressionResult, Scores
from refervos.evaluation.plots import histogram, intervals
from refervos.evaluation.predictions import Predictions, png
from refervos.evaluation.summary import Group, Grouping, Summary
from refervos.files.writing import prepare_folder, write_atomically
from refervos.safe_text import printable

MOST_GROUPS = 12
"""Maximum number of groups in a plot."""


def require_packages() -> None:
    """Check that the packages for the report are installed, before hours of work.

    Raises:
        MissingDependencyError: When a package is missing.
    """
    require_installed("the report", "eval", "jinja2", "matplotlib")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Outcome of an evaluation, with the data set and the masks.

    Attributes:
        summary: The tables.
        part: The data set.
        predictions: The masks.
    """

    summary: Summary
    part: OpenPart
    predictions: Predictions

    def write(self, folder: Path) -> list[Path]:
        """Write the tables and the report; existing files of these names are replaced.

        Args:
            folder: Folder to write to; created if missing.

        Returns:
            The paths of ``expressions.csv``, ``summary.md``, ``summary.json`` and ``report.html``.

        Raises:
            DataError: When a frame or mask of the report's images cannot be read.
            MissingDependencyError: When a package for the report is missing.
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
    """Render the report.

    Args:
        evaluation: The evaluation.

    Returns:
        An HTML document; all text from the data set is escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def safe(value: Any) -> Any:
        """Make hidden and reordering characters of text visible; leave markup unchanged."""
        return value if isinstance(value, Markup) else printable(str(value))

    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, finalize=safe, undefined=StrictUndefined)
    page: str = environment.get_template("report.html").render(
        summary=evaluation.summary,
        plots=_plots(evaluation.summary),
        worst=_worst(evaluation),
        legend=LEGEND,
    )
    return page + "\n"


def _plots(summary: Summary) -> Iterator[str]:
    """Yield the histogram and the plots by group as ``svg`` elements."""
    yield histogram([100 * scores.j_and_f for _, scores in summary.scored], "expressions by J&F")
    headline = next(iter(summary.groups[0].values))
    labels: dict[Grouping, str] = {"length": "length of the video", "size": "size of the target", "kind": "kind"}
    for by, label in labels.items():
        groups = summary.grouped(by)
        if len(groups) > MOST_GROUPS:
            label += f", the {MOST_GROUPS} largest groups of {len(groups)}"
            groups = sorted(groups, key=lambda group: -group.count)[:MOST_GROUPS]
        if groups:
            yield intervals([_bar(group) for group in groups], f"{headline} by {label}")


def _bar(group: Group) -> tuple[str, int, Interval | None]:
    return group.name.removesuffix(" of the frame"), group.count, group.headline


def _worst(evaluation: Evaluation) -> Iterator[tuple[ExpressionResult, Scores, str]]:
    """Yield the expressions with the lowest scores, each with an image in base 64."""
    samples = {sample.key: sample for sample in evaluation.part.samples()}
    for result, scores in evaluation.summary.worst:
        sample = samples[result.video, result.expression_id]
        yield result, scores, base64.b64encode(png(draw_expression(sample, evaluation.predictions))).decode()
