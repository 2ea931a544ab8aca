"""Scoring of mask files of any system, as ``refervos eval`` scores its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.expression_scores import ExpressionResult, score_expression
from refervos.evaluation.matched import MatchedResult, annotators, by_annotator, score_matched, uses_matching
from refervos.evaluation.predictions import MergedPredictions, Predictions
from refervos.evaluation.report import Evaluation
from refervos.evaluation.result_folder import ResultFolder
from refervos.evaluation.summary import summarise
from refervos.processes import run_in_processes
from refervos.progress import Bar


@dataclass(frozen=True)
class Scorer:
    """Masks and data set to score, in a picklable form, so that every process can prepare itself.

    Attributes:
        folder: Folder of the masks, as for ``Predictions.open``.
        part: The data set.
    """

    folder: Path
    part: Part

    def begin(self, part: OpenPart | None = None) -> Callable[[int], Iterator[ExpressionResult | MatchedResult]]:
        """Open the data set.

        Args:
            part: The data set, if it is already open.

        Returns:
            A function that scores all expressions about a video, given the video's index.
        """
        part = part or self.part.open()
        return partial(self._score, Predictions.open(self.folder), part)

    def _score(
        self, predictions: Predictions, part: OpenPart, number: int
    ) -> Iterator[ExpressionResult | MatchedResult]:
        video, samples = part.videos[number]
        for sample in samples:
            yield score_expression(sample, predictions)
        if uses_matching(part):
            for annotator, of_annotator in by_annotator(samples).items():
                source = predictions if isinstance(predictions, MergedPredictions) else ResultFolder(self.folder)
                merged = source.merged(video.id, annotator)
                yield score_matched(of_annotator, predictions, merged if merged.is_dir() else None)


def score(folder: Path, part: Part, *, processes: int = 1, show_progress: bool | None = None) -> Evaluation:
    """Score mask files.

    Args:
        folder: Folder of ``<video>/<expression_id>/<frame>.png``, one of ``refervos eval``, or predictions for
            Ref-DAVIS17 as published code writes them, ``anno_0/<video>/<frame>.png``.
        part: The data set.
        processes: Number of processes.
        show_progress: Show a progress bar; default only on a terminal.

    Returns:
        The tables, the data set and the masks.

    Raises:
        DataError: When the data set cannot be read.
        EvaluationError: When the folder does not exist, or a mask is damaged, not binary or of another size. Missing
            masks are no error; they score 0.
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
