"""The tables of an evaluation: over all expressions, by kind, by length, and the worst ones."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from refervos.evaluation.bootstrap import Interval, span
from refervos.evaluation.datasets import Scoring
from refervos.evaluation.expressions import ExpressionResult, Scores
from refervos.evaluation.matched import MatchedResult
from refervos.evaluation.measures import columns_of, lines_of, measure, published_measures
from refervos.markdown import NONE, markdown_table, number
from refervos.safe_text import one_line, table_cell

WORST = 20
"""How many of the worst expressions are shown."""

LENGTHS = (1, 16, 32, 64, 128, 256, 512)
"""Where the groups of video lengths end, in frames."""

SIZES = (1, 2, 5, 10, 20)
"""Where the groups of target sizes end, in percent of the frame."""

MATCHED, STRICT = "published (matched)", "strict (by expression)"
"""The two protocols of Ref-DAVIS17."""

Values: TypeAlias = Mapping[str, Interval | None]
"""Measures by name, in percent."""

Grouping: TypeAlias = Literal["all", "target", "kind", "length", "size"]
"""What expressions are grouped by."""

Chosen: TypeAlias = Callable[[ExpressionResult], bool]


@dataclass(frozen=True)
class Group:
    """Some expressions together.

    Attributes:
        by: What they have in common.
        name: Such as ``all``, ``static`` or ``17 to 32 frames``.
        count: How many expressions.
        videos: About how many videos.
        values: The benchmark's measures over them, the headline first.
    """

    by: Grouping
    name: str
    count: int
    videos: int
    values: Values

    @property
    def headline(self) -> Interval | None:
        """The measure that the benchmark ranks by."""
        return next(iter(self.values.values()))


@dataclass(frozen=True)
class Summary:
    """What an evaluation found.

    Attributes:
        title: What was evaluated on what.
        results: Every expression's result, in the order of the data set.
        groups: Of the expressions that are scored, all of them first.
        lines: What the benchmark reports besides.
    """

    title: str
    results: tuple[ExpressionResult, ...]
    groups: tuple[Group, ...]
    lines: Values

    def grouped(self, by: Grouping) -> list[Group]:
        """The groups of one kind."""
        return [group for group in self.groups if group.by == by]

    @property
    def scored(self) -> list[tuple[ExpressionResult, Scores]]:
        """The results of which the truth is known, with their scores."""
        return [(result, result.scores) for result in self.results if result.scores is not None]

    @property
    def worst(self) -> list[tuple[ExpressionResult, Scores]]:
        """The expressions that were answered worst, the worst first."""
        return sorted(self.scored, key=lambda one: (one[1].j_and_f, one[0].video, one[0].expression_id))[:WORST]

    @property
    def masks_per_second(self) -> float | None:
        """Masks over the model's time; None where no model was asked."""
        seconds = sum(result.seconds for result in self.results)
        return sum(result.frames for result in self.results) / seconds if seconds else None

    def markdown(self) -> str:
        """All tables, without a line break at the end. Percent throughout; intervals are 95 % over videos."""
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
        """The groups as markdown, one a row."""
        return markdown_table(*self.cells())

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of the table; groups by size are for plots only."""
        first, *others = self.groups[0].values
        rows = []
        for group in self.groups:
            if group.by != "size":
                interval = NONE if group.headline is None else span(group.headline)
                numbers = [_mean(value) for value in group.values.values()]
                rows.append([group.name, str(group.count), str(group.videos), numbers[0], interval, *numbers[1:]])
        return ["", "expressions", "videos", first, "95 %", *others], rows

    def sentences(self) -> list[str]:
        """What the benchmark reports besides."""
        return [f"{name}: {_mean(value)} ({span(value)})" for name, value in self.lines.items() if value is not None]

    def notes(self) -> list[str]:
        """How much was evaluated, and what was not as it should be."""
        frames = sum(result.frames for result in self.results)
        videos = len({result.video for result in self.results})
        notes = [f"{len(self.results)} expressions about {videos} videos; {frames} masks."]
        secret = len(self.results) - len(self.scored)
        if secret:
            notes.append(f"The truth about {secret} of them is not public: they are answered, not scored.")
        missing = [result for result in self.results if result.missing]
        if missing:
            few = ", ".join(f"{result.video}/{result.expression_id}" for result in missing[:3])
            notes.append(
                f"{sum(result.missing for result in missing)} masks of {len(missing)} expressions are missing "
                f"({few}{', ...' * (len(missing) > 3)}); these frames count as J = F = 0."
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain values: percent, each with the ends of its interval."""
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
        """A header, and a line for each expression; scores are in [0, 1]. Text that looks like a formula is quoted."""
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
    """Put results together as their benchmark does.

    Args:
        title: What was evaluated on what.
        scoring: How the benchmark is scored.
        results: Every expression's result.
        matched: Of Ref-DAVIS17, the results by the published protocol.

    Returns:
        The tables.
    """
    scored = [result for result in results if result.scores is not None]
    columns, lines = columns_of(scoring), lines_of(scoring)
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


def _choices(scored: Sequence[ExpressionResult]) -> Iterator[tuple[Grouping, str, Chosen]]:
    """Which expressions the groups are of."""
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
    """From where, exclusive, to where each group goes; the last has no end."""
    yield from zip((0, *ends), (*ends, None), strict=True)


def _of_kind(kind: str) -> Chosen:
    return lambda result: result.kind == kind


def _of_length(low: int, high: int | None) -> Chosen:
    return lambda result: low < result.frames and (high is None or result.frames <= high)


def _of_size(low: int, high: int | None) -> Chosen:
    def chosen(result: ExpressionResult) -> bool:
        size = None if result.scores is None else result.scores.target_size
        return size is not None and low < 100 * size and (high is None or 100 * size <= high)

    return chosen


def _mean(value: Interval | None) -> str:
    return number(None if value is None else value.mean)


def _plain(values: Values) -> dict[str, list[float] | None]:
    return {name: None if value is None else list(value) for name, value in values.items()}


def _cell(text: str) -> str:
    """An expression as a cell of a markdown table."""
    return one_line(text, 80)
