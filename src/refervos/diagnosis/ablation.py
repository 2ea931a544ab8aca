"""Comparison of model variants: the contribution of each part, with intervals of the differences."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from refervos.diagnosis.results import CaseResult, Diagnosis, read_diagnosis
from refervos.diagnosis.tables import percentages
from refervos.errors import EvaluationError
from refervos.evaluation.bootstrap import Interval, paired_difference
from refervos.markdown import NONE, markdown_table, number

MIN_CLIPS = 10
"""Minimum number of clips per split for a difference in bold; with fewer, intervals are too narrow."""


def ablation_table(variants: Mapping[str, Diagnosis | str | os.PathLike[str]], reference: str) -> str:
    """Format a comparison of diagnoses of the same cases.

    Args:
        variants: Diagnoses, or paths of their files, by name.
        reference: Name of the variant that the others are compared with.

    Returns:
        Two Markdown tables in percent: the scores of the variants, then each variant minus the reference with the
        paired 95 % bootstrap interval over clips. Differences whose interval excludes zero are bold, unless a split
        has fewer than ``MIN_CLIPS`` clips.

    Raises:
        EvaluationError: When the reference is missing, a file is unreadable, or the cases differ.
    """
    if reference not in variants:
        raise EvaluationError(f"there is no variant {reference!r}; the variants are {', '.join(variants)}.")
    names = [reference, *(name for name in variants if name != reference)]
    diagnoses = {name: _read(variants[name]) for name in names}
    for name in names[1:]:
        check_same_cases(diagnoses[reference], diagnoses[name], reference, name)
    splits = diagnoses[reference].splits
    header = ["variant", *splits, "target splits", "N-acc", "T-acc"]
    scores = markdown_table(header, [_scores(name, diagnoses[name]) for name in names])
    differences = [_differences(name, diagnoses[name], diagnoses[reference]) for name in names[1:]]
    if not differences:
        return scores
    header = [f"minus {reference}", *splits, "target splits", "N-acc"]
    return f"{scores}\n\n{markdown_table(header, differences)}"


def check_same_cases(a: Diagnosis, b: Diagnosis, a_name: str = "a", b_name: str = "b") -> None:
    """Check that two diagnoses can be compared case by case.

    Args:
        a: One diagnosis.
        b: The other.
        a_name: Name of ``a`` in the error message.
        b_name: Name of ``b`` in the error message.

    Raises:
        EvaluationError: When the cases or their prompts differ.
    """
    for one, other in zip_longest(a.cases, b.cases):
        if _identity(one) != _identity(other):
            raise EvaluationError(
                f"{a_name} and {b_name} were not diagnosed on the same cases: one has {_described(one)}, where the "
                f"other has {_described(other)}; run both on the same splits and count, with one version of refervos."
            )


def target_difference(variant: Diagnosis, reference: Diagnosis) -> Interval | None:
    """Return the difference of two headline scores in percent.

    Clips are resampled within their split, and splits are weighted equally, as in the headline.

    Args:
        variant: One diagnosis.
        reference: Another diagnosis of the same cases.

    Returns:
        Variant minus reference; None without target cases.
    """
    return _difference(variant.target_cases, reference.target_cases)


def _read(variant: Diagnosis | str | os.PathLike[str]) -> Diagnosis:
    return variant if isinstance(variant, Diagnosis) else read_diagnosis(variant)


def _identity(case: CaseResult | None) -> tuple[object, ...] | None:
    return None if case is None else (case.split, case.index, case.text, case.frames, case.visible)


def _described(case: CaseResult | None) -> str:
    return "nothing" if case is None else f"{case.split} {case.index} ({case.text!r}, {case.frames} frames)"


def _scores(name: str, diagnosis: Diagnosis) -> list[str]:
    splits = [number(diagnosis.summary(split).j_and_f) for split in diagnosis.splits]
    return [name, *splits, number(diagnosis.target_mean), number(diagnosis.n_acc), number(diagnosis.t_acc)]


def _differences(name: str, variant: Diagnosis, reference: Diagnosis) -> list[str]:
    cells = [
        _signed(_difference(variant.of_split(split), reference.of_split(split)), len(reference.of_split(split)))
        for split in reference.splits
    ]
    fewest = min(Counter(case.split for case in reference.target_cases).values(), default=0)
    no_target = len(reference.cases) - len(reference.target_cases)
    cells.append(_signed(target_difference(variant, reference), fewest))
    cells.append(_signed(_n_acc_difference(variant, reference), no_target))
    return [name, *cells]


def _difference(variant: Sequence[CaseResult], reference: Sequence[CaseResult]) -> Interval | None:
    if not reference:
        return None
    return paired_difference(percentages(variant), percentages(reference), [case.split for case in reference])


def _n_acc_difference(variant: Diagnosis, reference: Diagnosis) -> Interval | None:
    correct = [[100.0 * c.empty for c in diagnosis.cases if not c.has_target] for diagnosis in (variant, reference)]
    return paired_difference(*correct) if correct[0] else None


def _signed(interval: Interval | None, clips: int) -> str:
    """Format a difference; bold if its interval excludes zero and there are enough clips."""
    if interval is None:
        return NONE
    text = f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
    return f"**{text}**" if interval.excludes_zero and clips >= MIN_CLIPS else text
