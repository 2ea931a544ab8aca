"""Evaluation on the diagnostic benchmark of synthetic clips, each split of which tests one ability."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from refervos.diagnosis.results import CaseResult, Diagnosis, Masks, score_case
from refervos.errors import ConfigError
from refervos.evaluation.inference import Mode, PromptedClip, clip_length_of, predict_clips
from refervos.prompts import Prompt
from refervos.segmenter import Segmenter
from refervos.worlds.benchmark import ALL_SPLITS, SPLITS, DiagnosticCase, diagnostic_cases

PromptChoice: TypeAlias = Literal["target", "other"]
"""The sentence used as prompt: the case's own, or the one about another object."""

Draw: TypeAlias = Callable[[str, int | None], Iterable[DiagnosticCase]]
"""Draws the first cases of a split, as many as given, or all for None."""


@dataclass(frozen=True)
class ScoredCase:
    """A case with its prediction and scores.

    Attributes:
        case: The clip and its sentences.
        masks: Predicted masks, bool (T, H, W).
        result: The scores.
    """

    case: DiagnosticCase
    masks: Masks
    result: CaseResult


def diagnose(
    segmenter: Segmenter[Any],
    splits: Sequence[str] = SPLITS,
    count: int | None = None,
    *,
    prompt_with: PromptChoice = "target",
    mode: Mode = "clips",
    hindsight: bool = False,
    batch: int = 8,
    name: str | None = None,
    progress: Callable[[ScoredCase], None] | None = None,
    draw: Draw = diagnostic_cases,
) -> Diagnosis:
    """Segment every case and score the predictions.

    Args:
        segmenter: The model, in evaluation mode.
        splits: Splits of the benchmark.
        count: Number of cases per split, from the first; default all.
        prompt_with: With ``other``, prompt with the sentence about another object but score against the original
            target: the score that remains does not come from language. Cases without either are left out.
        mode: How frames are grouped into clips.
        hindsight: Decide at the end of each clip which object is meant (see ``refervos.session.hindsight``).
        batch: Clips segmented at once, where the model allows; it changes results by rounding only.
        name: Name of the model; default its family.
        progress: Called with each scored case, in the order of processing.
        draw: Source of the cases.

    Returns:
        One result per case, ordered by split and index.

    Raises:
        ConfigError: When a split or the mode is unknown, or a number is below 1.
        PromptError: When the model does not support text prompts.
    """
    splits = check_splits(splits)
    clip_length = clip_length_of(segmenter, mode)
    if batch < 1 or (count is not None and count < 1):
        raise ConfigError(f"batch is {batch} and count is {count}; both must be at least 1.")
    results: list[CaseResult] = []
    for split in splits:
        of_split: list[CaseResult] = []
        cases = (case for case in draw(split, count) if prompt_with == "target" or _has_other(case))
        for group in batch_by_shape(cases, batch):
            for scored in _score_group(segmenter, group, prompt_with, clip_length, hindsight):
                of_split.append(scored.result)
                if progress is not None:
                    progress(scored)
        results += sorted(of_split, key=lambda result: result.index)
    return Diagnosis(name or str(segmenter.describe()["family"]), clip_length, tuple(results))


def check_splits(splits: Sequence[str]) -> tuple[str, ...]:
    """Check the names of splits and drop duplicates.

    Raises:
        ConfigError: When a split is unknown, or none is given.
    """
    for split in splits:
        if split not in ALL_SPLITS:
            raise ConfigError(f"there is no split {split!r}; the splits are {', '.join(ALL_SPLITS)}.")
    if not splits:
        raise ConfigError(f"there is no split to diagnose on; the splits are {', '.join(SPLITS)}.")
    return tuple(dict.fromkeys(splits))


def batch_by_shape(cases: Iterable[DiagnosticCase], size: int) -> Iterator[list[DiagnosticCase]]:
    """Group cases whose clips have the same number and size of frames.

    Args:
        cases: The cases, consumed only as far as each group needs.
        size: Cases per group; the last group of each shape may have fewer.

    Yields:
        Non-empty groups.
    """
    incomplete: dict[tuple[int, ...], list[DiagnosticCase]] = {}
    for case in cases:
        shape = case.clip.frames.shape
        group = incomplete.setdefault(shape, [])
        group.append(case)
        if len(group) == size:
            yield incomplete.pop(shape)
    yield from incomplete.values()


def _has_other(case: DiagnosticCase) -> bool:
    """Check if a case has both a target and a sentence about another object."""
    return bool(case.expression.targets) and case.other is not None


def _score_group(
    segmenter: Segmenter[Any],
    cases: Sequence[DiagnosticCase],
    prompt_with: PromptChoice,
    clip_length: int,
    hindsight: bool,
) -> Iterator[ScoredCase]:
    """Segment a group of cases and score each."""
    expressions = [case.expression if prompt_with == "target" or case.other is None else case.other for case in cases]
    clips = [
        PromptedClip(case.clip.frames, Prompt(r.text, verbs=list(r.verbs)))
        for case, r in zip(cases, expressions, strict=True)
    ]
    predictions = predict_clips(segmenter, clips, clip_length, hindsight=hindsight)
    for case, expression, predicted in zip(cases, expressions, predictions, strict=True):
        result = score_case(
            case, predicted.masks, prompt=expression, switches=predicted.switches, seconds=predicted.seconds
        )
        yield ScoredCase(case, predicted.masks, result)
