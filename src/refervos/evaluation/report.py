"""An evaluation on one page: tables, plots and pictures in a single HTML file without scripts or links."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refervos.evaluation.bootstrap import Interval
from refervos.evaluation.contact_sheets import HOW_TO_READ, draw_expression
from refervos.evaluation.datasets import OpenPart
from refervos.evaluation.expressions import ExpressionResult, Scores
from refervos.evaluation.plots import histogram, intervals
from refervos.evaluation.predictions import Predictions, png
from refervos.evaluation.summary import Group, Grouping, Summary
from refervos.files.writing import prepare_folder, write_whole
from refervos.safe_text import html as escape

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c20; background: #fff; max-width: 1100px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 3px 10px; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 1em; }
svg { width: 100%; } svg text { font: 11px system-ui, sans-serif; fill: #444; }
svg .title { font-size: 13px; font-weight: 600; fill: #1c1c20; } svg .faint { fill: #888; }
svg .level { stroke: #ddd; } svg .bar, svg .mean { fill: #0072b2; } svg .whisker { stroke: #0072b2; stroke-width: 2; }
figure { margin: 1.5em 0; } figure img { max-width: 100%; } figcaption { color: #555; overflow-wrap: anywhere; }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load or run for this page: pictures that are in it, and nothing else."""


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
            OutputError: When a file cannot be written.
        """
        prepare_folder(folder)
        contents = {
            "expressions.csv": self.summary.csv(),
            "summary.md": self.summary.markdown() + "\n",
            "summary.json": json.dumps(self.summary.to_json(), indent=1) + "\n",
            "report.html": html_report(self),
        }
        for name, text in contents.items():
            write_whole(folder / name, text.encode("utf-8", "replace"))
        return [folder / name for name in contents]


def html_report(evaluation: Evaluation) -> str:
    """Draw up the page.

    Args:
        evaluation: What is reported.

    Returns:
        A whole HTML document; everything that comes from the data set is escaped.
    """
    summary = evaluation.summary
    body = [f"<h1>{escape(summary.title)}</h1>", *(f"<p>{escape(note)}</p>" for note in summary.notes())]
    if summary.scored:
        body += [
            _table(summary),
            *_list(summary),
            "<h2>Plots</h2>",
            f'<div class="plots">{"".join(_plots(summary))}</div>',
        ]
        body += [f"<h2>The {len(summary.worst)} worst expressions</h2>", f"<p>{HOW_TO_READ}</p>", *_worst(evaluation)]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(summary.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _table(summary: Summary) -> str:
    header, rows = summary.cells()
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>\n{chr(10).join(lines)}\n</table>\n<p>Percent; 95 % intervals by drawing videos again.</p>"


def _list(summary: Summary) -> Iterator[str]:
    sentences = summary.sentences()
    if sentences:
        yield f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _plots(summary: Summary) -> Iterator[str]:
    yield histogram([100 * scores.j_and_f for _, scores in summary.scored], "expressions by J&F")
    headline = next(iter(summary.groups[0].values))
    about: dict[Grouping, str] = {"length": "length of the video", "size": "size of the target", "kind": "kind"}
    for by, words in about.items():
        groups = summary.grouped(by)
        if groups:
            yield intervals([_bar(group) for group in groups], f"{headline} by {words}")


def _bar(group: Group) -> tuple[str, int, Interval | None]:
    return group.name.removesuffix(" of the frame"), group.count, group.headline


def _worst(evaluation: Evaluation) -> Iterator[str]:
    samples = {sample.key: sample for sample in evaluation.part.samples()}
    for rank, (result, scores) in enumerate(evaluation.summary.worst, start=1):
        sample = samples[result.video, result.expression_id]
        picture = base64.b64encode(png(draw_expression(sample, evaluation.predictions))).decode()
        yield (
            f'<figure><img alt="" src="data:image/png;base64,{picture}"><figcaption>{rank}. '
            f"{escape(_described(result, scores))}</figcaption></figure>"
        )


def _described(result: ExpressionResult, scores: Scores) -> str:
    return (
        f"{result.expression} ({result.video}/{result.expression_id}): J&F {100 * scores.j_and_f:.1f}; missed in "
        f"{scores.missed} of {scores.visible} frames that show it, false alarm in {scores.false_alarms} of "
        f"{scores.frames - scores.visible} that do not"
    )
