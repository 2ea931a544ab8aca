"""Run a model over the diagnostic benchmark: drawn clips, each split of which probes one ability."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from refervos.diagnosis.results import CaseResult, Diagnosis, Masks, score_case
from refervos.errors import ConfigError
from refervos.evaluation.answers import Mode, Question, answer, clip_length_of
from refervos.prompts import Prompt
from refervos.segmenter import Segmenter
from refervos.worlds.benchmark import ALL_SPLITS, SPLITS, DiagnosticCase, diagnostic_cases

Ask: TypeAlias = Literal["target", "other"]
"""Which sentence is asked: the case's own, or the one about another object."""

Draw: TypeAlias = Callable[[str, int | None], Iterable[DiagnosticCase]]
"""Draws the first so many cases of a split; None draws all."""


@dataclass(frozen=True)
class AnsweredCase:
    """A case, what a model made of it, and how good that is.

    Attributes:
        case: The clip and its sentences.
        masks: The prediction, bool (T, H, W).
        result: Its scores.
    """

    case: DiagnosticCase
    masks: Masks
    result: CaseResult


def diagnose(
    segmenter: Segmenter[Any],
    splits: Sequence[str] = SPLITS,
    count: int | None = None,
    *,
    ask: Ask = "target",
    mode: Mode = "clips",
    batch: int = 8,
    name: str | None = None,
    progress: Callable[[AnsweredCase], None] | None = None,
    draw: Draw = diagnostic_cases,
) -> Diagnosis:
    """Ask a model every case's sentence and score what it answers.

    Args:
        segmenter: The model, in evaluation mode.
        splits: Which splits of the benchmark.
        count: Cases of each split, from its first; default all.
        ask: ``other`` asks the sentence about another object instead and scores against the original target: what
            still scores was not found by reading. Cases without a target or such a sentence are left out.
        mode: How frames come.
        batch: Clips answered at once, where the model allows; results do not depend on it but for rounding.
        name: What to call the model, default its family.
        progress: Called with each answered case, in the order of the answers.
        draw: Where the cases come from.

    Returns:
        A result for each case, ordered by split and index.

    Raises:
        ConfigError: When there is no such split or mode, or a number is below 1.
        PromptError: When the model cannot be asked with sentences.
    """
    splits = known_splits(splits)
    clip_length = clip_length_of(segmenter, mode)
    if batch < 1 or (count is not None and count < 1):
        raise ConfigError(f"batch is {batch} and count is {count}; both must be at least 1.")
    results: list[CaseResult] = []
    for split in splits:
        of_split: list[CaseResult] = []
        asked = (case for case in draw(split, count) if ask == "target" or _has_other(case))
        for group in batches(asked, batch):
            for answered in _answer(segmenter, group, ask, clip_length):
                of_split.append(answered.result)
                if progress is not None:
                    progress(answered)
        results += sorted(of_split, key=lambda result: result.index)
    return Diagnosis(name or str(segmenter.describe()["family"]), clip_length, tuple(results))


def known_splits(splits: Sequence[str]) -> tuple[str, ...]:
    """Check the names of splits and drop repetitions.

    Raises:
        ConfigError: When one is not in the benchmark, or there is none.
    """
    for split in splits:
        if split not in ALL_SPLITS:
            raise ConfigError(f"there is no split {split!r}; the splits are {', '.join(ALL_SPLITS)}.")
    if not splits:
        raise ConfigError(f"there is no split to diagnose on; the splits are {', '.join(SPLITS)}.")
    return tuple(dict.fromkeys(splits))


def batches(cases: Iterable[DiagnosticCase], size: int) -> Iterator[list[DiagnosticCase]]:
    """Group cases whose clips have the same number and size of frames.

    Args:
        cases: Read only as far as the group at hand.
        size: Cases in a group; the last of each shape may have fewer.

    Yields:
        Groups, none empty.
    """
    waiting: dict[tuple[int, ...], list[DiagnosticCase]] = {}
    for case in cases:
        shape = case.clip.frames.shape
        group = waiting.setdefault(shape, [])
        group.append(case)
        if len(group) == size:
            yield waiting.pop(shape)
    yield from waiting.values()


def _has_other(case: DiagnosticCase) -> bool:
    """Whether the sentence about another object tells anything."""
    return bool(case.referral.targets) and case.other is not None


def _answer(
    segmenter: Segmenter[Any], cases: Sequence[DiagnosticCase], ask: Ask, clip_length: int
) -> Iterator[AnsweredCase]:
    """Answer one group of cases and score each."""
    asked = [case.referral if ask == "target" or case.other is None else case.other for case in cases]
    questions = [
        Question(case.clip.frames, Prompt(r.text, verbs=list(r.verbs))) for case, r in zip(cases, asked, strict=True)
    ]
    answers = answer(segmenter, questions, clip_length)
    for case, referral, found in zip(cases, asked, answers, strict=True):
        result = score_case(case, found.masks, asked=referral, switches=found.switches, seconds=found.seconds)
        yield AnsweredCase(case, found.masks, result)
