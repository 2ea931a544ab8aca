"""Score the masks of any system, in files, as ``refervos eval`` scores its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.expressions import ExpressionResult, score_expression
from refervos.evaluation.matched import MatchedResult, annotators, by_annotator, matches, score_matched
from refervos.evaluation.predictions import MergedPredictions, Predictions
from refervos.evaluation.report import Evaluation
from refervos.evaluation.result_folder import ResultFolder
from refervos.evaluation.summary import summarise
from refervos.processes import run_in_processes
from refervos.progress import Bar


@dataclass(frozen=True)
class Scorer:
    """What is scored, in words from which every process can prepare for it.

    Attributes:
        folder: The folder of the masks, as ``Predictions.open`` takes it.
        part: What they answer.
    """

    folder: Path
    part: Part

    def begin(self, part: OpenPart | None = None) -> Callable[[int], Iterator[ExpressionResult | MatchedResult]]:
        """Open the data set.

        Args:
            part: Where it is open already.

        Returns:
            What scores all expressions about a video, given its number.
        """
        part = part or self.part.open()
        return partial(self._score, Predictions.open(self.folder), part)

    def _score(
        self, predictions: Predictions, part: OpenPart, number: int
    ) -> Iterator[ExpressionResult | MatchedResult]:
        video, samples = part.videos[number]
        for sample in samples:
            yield score_expression(sample, predictions)
        if matches(part):
            for annotator, told in by_annotator(samples).items():
                place = predictions if isinstance(predictions, MergedPredictions) else ResultFolder(self.folder)
                merged = place.merged(video.id, annotator)
                yield score_matched(told, predictions, merged if merged.is_dir() else None)


def score(folder: Path, part: Part, *, processes: int = 1, show_progress: bool | None = None) -> Evaluation:
    """Score masks in files.

    Args:
        folder: One that holds ``<video>/<expression_id>/<frame>.png``, one of ``refervos eval``, or answers to
            Ref-DAVIS17 as published code writes them: ``anno_0/<video>/<frame>.png``.
        part: What they answer.
        processes: How many share the work.
        show_progress: True or False; default when standard error is a terminal.

    Returns:
        The tables, and what they are about.

    Raises:
        DataError: When the data set cannot be read.
        EvaluationError: When there is no such folder, or a mask is damaged, not binary or of another size. Missing
            masks are no error: they count 0.
    """
    opened, predictions = part.open(), Predictions.open(folder)
    scorer = Scorer(folder, part)
    begin = scorer.begin if processes > 1 else partial(scorer.begin, opened)
    results: dict[tuple[str, str], ExpressionResult] = {}
    matched: dict[tuple[str, str], MatchedResult] = {}
    with Bar("expressions", sum(len(samples) for _, samples in opened.videos), show_progress) as bar:
        for result in run_in_processes([begin], range(len(opened.videos)), processes):
            if isinstance(result, MatchedResult):
                matched[result.video, result.annotator] = result
            else:
                results[result.video, result.expression_id] = result
                bar.advance(1)
    title = f"{folder.name} on {opened.dataset.name} {opened.dataset.split}"
    summary = summarise(
        title,
        opened.scoring,
        [results[sample.key] for sample in opened.samples()],
        [matched[key] for key in annotators(opened) if key in matched],
    )
    return Evaluation(summary, opened, predictions)
