"""Tables of an evaluation: over all expressions, by kind, by length, and the expressions with the lowest scores."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from refervos.evaluation.bootstrap import Interval, span
from refervos.evaluation.datasets import Scoring
from refervos.evaluation.expression_scores import ExpressionResult, Scores
from refervos.evaluation.matched import MatchedResult
from refervos.evaluation.measures import measure, published_measures, summary_measures, table_measures
from refervos.markdown import NONE, markdown_table, number
from refervos.safe_text import one_line, table_cell

WORST = 20
"""Number of worst expressions shown."""

LENGTHS = (1, 16, 32, 64, 128, 256, 512)
"""Upper ends of the groups of video lengths, in frames."""

SIZES = (1, 2, 5, 10, 20)
"""Upper ends of the groups of target sizes, in percent of the frame."""

MATCHED, STRICT = "published (matched)", "strict (by expression)"
"""The two protocols of Ref-DAVIS17."""

Values: TypeAlias = Mapping[str, Interval | None]
"""Measures by name, in percent."""

Grouping: TypeAlias = Literal["all", "target", "kind", "length", "size"]
"""Criterion by which expressions are grouped."""

Condition: TypeAlias = Callable[[ExpressionResult], bool]


@dataclass(frozen=True)
class Group:
    """Group of expressions.

    Attributes:
        by: Criterion of the group.
        name: Name such as ``all``, ``static`` or ``17 to 32 frames``.
        count: Number of expressions.
        videos: Number of videos.
        values: The benchmark's measures over the group, the headline first.
    """

    by: Grouping
    name: str
    count: int
    videos: int
    values: Values

    @property
    def headline(self) -> Interval | None:
        """Measure by which the benchmark ranks."""
        return next(iter(self.values.values()))


@dataclass(frozen=True)
class Summary:
    """Tables of an evaluation.

    Attributes:
        title: Model, data set and mode.
        results: Results of all expressions, in the order of the data set.
        groups: Groups of the scored expressions; the first holds all of them.
        lines: Measures reported below the table.
    """

    title: str
    results: tuple[ExpressionResult, ...]
    groups: tuple[Group, ...]
    lines: Values

    def grouped(self, by: Grouping) -> list[Group]:
        """Return the groups by one criterion."""
        return [group for group in self.groups if group.by == by]

    @property
    def scored(self) -> list[tuple[ExpressionResult, Scores]]:
        """Results with public ground truth, with their scores."""
        return [(result, result.scores) for result in self.results if result.scores is not None]

    @property
    def worst(self) -> list[tuple[ExpressionResult, Scores]]:
        """Expressions with the lowest scores, the lowest first."""
        return sorted(self.scored, key=lambda one: (one[1].j_and_f, one[0].video, one[0].expression_id))[:WORST]

    @property
    def masks_per_second(self) -> float | None:
        """Masks per second of the model's time; None if no model was run."""
        seconds = sum(result.seconds for result in self.results)
        return sum(result.frames for result in self.results) / seconds if seconds else None

    def markdown(self) -> str:
        """Format all tables as Markdown, in percent with 95 % intervals over videos, without a final line break."""
        paragraphs = [one_line(self.title), "\n".join(map(one_line, self.notes()))]
        if self.scored:
            header = ["worst expressions", "video", "id", "J&F"]
            rows = [
                [_cell(result.expression), result.video, result.expression_id, number(100 * scores.j_and_f)]
                for result, scores in self.worst
            ]
            paragraphs += [self.table(), "\n".join(f"- {line}" for line in self.sentences())]
            paragraphs.append(markdown_table(header, rows))
        return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)

    def table(self) -> str:
        """Format the groups as a Markdown table, one per row."""
        return markdown_table(*self.cells())

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the rows of the table; groups by size appear in plots only."""
        first, *others = self.groups[0].values
        rows = []
        for group in self.groups:
            if group.by != "size":
                interval = NONE if group.headline is None else span(group.headline)
                numbers = [_mean(value) for value in group.values.values()]
                rows.append([group.name, str(group.count), str(group.videos), numbers[0], interval, *numbers[1:]])
        return ["", "expressions", "videos", first, "95 %", *others], rows

    def sentences(self) -> list[str]:
        """Format the measures reported below the table."""
        return [f"{name}: {_mean(value)} ({span(value)})" for name, value in self.lines.items() if value is not None]

    def notes(self) -> list[str]:
        """Return sentences on the number of expressions and on missing masks or ground truth."""
        frames = sum(result.frames for result in self.results)
        videos = len({result.video for result in self.results})
        notes = [f"{len(self.results)} expressions about {videos} videos; {frames} masks."]
        unscored = len(self.results) - len(self.scored)
        if unscored:
            notes.append(f"The ground truth of {unscored} expressions is not public: their masks are not scored.")
        missing = [result for result in self.results if result.missing]
        if missing:
            few = ", ".join(f"{result.video}/{result.expression_id}" for result in missing[:3])
            notes.append(
                f"{sum(result.missing for result in missing)} masks of {len(missing)} expressions are missing "
                f"({few}{', ...' * (len(missing) > 3)}); these frames count as J = F = 0."
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain values: percent, each with the ends of its interval."""
        return {
            "title": self.title,
            "expressions": len(self.results),
            "missing_masks": sum(result.missing for result in self.results),
            "groups": [
                {
                    "by": group.by,
                    "name": group.name,
                    "expressions": group.count,
                    "videos": group.videos,
                    "values": _plain(group.values),
                }
                for group in self.groups
            ],
            "measures": _plain(self.lines),
            "worst": [[result.video, result.expression_id] for result, _ in self.worst],
        }

    def csv(self) -> str:
        """Format a CSV table with a row per expression, scores in [0, 1]; text that looks like a formula is quoted."""
        names = [field.name for field in dataclasses.fields(ExpressionResult) if field.name != "scores"]
        scores = [field.name for field in dataclasses.fields(Scores)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*names, *(f"scored_{name}" if name in names else name for name in scores)])
        for result in self.results:
            row = [table_cell(getattr(result, name)) for name in names]
            writer.writerow([*row, *("" if result.scores is None else getattr(result.scores, name) for name in scores)])
        return text.getvalue()


def summarise(
    title: str, scoring: Scoring, results: Sequence[ExpressionResult], matched: Sequence[MatchedResult] = ()
) -> Summary:
    """Summarise results as their benchmark does.

    Args:
        title: Model, data set and mode.
        scoring: Scoring of the benchmark.
        results: Results of all expressions.
        matched: For Ref-DAVIS17, the results by the published protocol.

    Returns:
        The tables.
    """
    scored = [result for result in results if result.scores is not None]
    columns, lines = table_measures(scoring), summary_measures(scoring)
    choices = [(*choice, [result for result in scored if choice[2](result)]) for choice in _choices(scored)]
    choices = [choice for choice in choices if choice[0] == "all" or 0 < len(choice[3]) < len(scored)]
    of_groups = [column.among(chosen) for _, _, chosen, _ in choices for column in columns]
    values = iter(measure(scored, [*of_groups, *lines]))
    groups = tuple(
        Group(by, name, len(own), len({result.video for result in own}), {one.name: next(values) for one in columns})
        for by, name, _, own in choices
    )
    more = {line.name: next(values) for line in lines}
    if scoring == "ref-davis17":
        published = published_measures(matched)
        measured = zip(published, measure(matched, published), strict=True)
        more |= {f"{one.name}, {MATCHED}": value for one, value in measured}
        more |= {f"{name}, {STRICT}": value for name, value in groups[0].values.items()}
    return Summary(title, tuple(results), groups, more)


def _choices(scored: Sequence[ExpressionResult]) -> Iterator[tuple[Grouping, str, Condition]]:
    """Yield criterion, name and condition of each possible group."""
    yield "all", "all", lambda result: True
    yield "target", "with target", lambda result: result.has_target is True
    yield "target", "without target", lambda result: result.has_target is False
    for kind in dict.fromkeys(result.kind for result in scored):
        if kind is not None:
            yield "kind", kind, _of_kind(kind)
    for low, high in _bounds(LENGTHS):
        last = "1 frame" if high == 1 else f"{low + 1} to {high} frames" if high else f"over {low} frames"
        yield "length", last, _of_length(low, high)
    for low, high in _bounds(SIZES):
        name = f"{low} to {high} % of the frame" if high else f"over {low} % of the frame"
        yield "size", name, _of_size(low, high)


def _bounds(ends: Sequence[int]) -> Iterator[tuple[int, int | None]]:
    """Yield the lower end (exclusive) and upper end of each group; the last has no upper end."""
    yield from zip((0, *ends), (*ends, None), strict=True)


def _of_kind(kind: str) -> Condition:
    return lambda result: result.kind == kind


def _of_length(low: int, high: int | None) -> Condition:
    return lambda result: low < result.frames and (high is None or result.frames <= high)


def _of_size(low: int, high: int | None) -> Condition:
    def chosen(result: ExpressionResult) -> bool:
        size = None if result.scores is None else result.scores.target_size
        return size is not None and low < 100 * size and (high is None or 100 * size <= high)

    return chosen


def _mean(value: Interval | None) -> str:
    return number(None if value is None else value.mean)


def _plain(values: Values) -> dict[str, list[float] | None]:
    return {name: None if value is None else list(value) for name, value in values.items()}


def _cell(text: str) -> str:
    """Shorten an expression to a cell of a Markdown table."""
    return one_line(text, 80)
