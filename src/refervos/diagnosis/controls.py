"""Controls: predictions that use no language, scored like the model's.

There are two, over the cases with a target. *Wrong sentence*: the same model is prompted with a sentence about another
object of the clip; the score that remains does not come from language. *Best single object*: a rule without language
picks one object of the clip and follows its exact mask; a model that uses language should beat every rule, although
the rules' masks are perfect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from refervos.diagnosis.diagnose import Draw, ScoredCase, diagnose
from refervos.diagnosis.results import CaseResult, Masks, mean_over_splits, score_case
from refervos.evaluation.inference import Mode
from refervos.segmenter import Segmenter
from refervos.worlds.benchmark import SPLITS, DiagnosticCase, diagnostic_cases

WRONG_SENTENCE = "wrong sentence"
"""Name of the control that prompts with a sentence about another object."""

Criterion: TypeAlias = Callable[[Masks], npt.NDArray[np.float64]]
"""Maps object masks bool (K, T, H, W) to one number per object (K,); a rule chooses the object with the largest."""


def mean_area(masks: Masks) -> npt.NDArray[np.float64]:
    """Return each object's area in pixels, mean over the frames that show it (K,)."""
    areas = masks.sum(axis=(2, 3))  # (K, T)
    return areas.sum(axis=1) / np.maximum(visible_frames(masks), 1)


def centrality(masks: Masks) -> npt.NDArray[np.float64]:
    """Return minus each object's distance from the frame centre in pixels, mean over frames that show it (K,)."""
    height, width = masks.shape[2:]
    distances = np.hypot(*(centroids(masks) - np.array([(height - 1) / 2, (width - 1) / 2])).transpose(2, 0, 1))
    return -np.nansum(distances, axis=1) / np.maximum(visible_frames(masks), 1)


def drawing_order(masks: Masks) -> npt.NDArray[np.float64]:
    """Return minus each object's index in drawing order (K,)."""
    return -np.arange(len(masks), dtype=np.float64)


def path_length(masks: Masks) -> npt.NDArray[np.float64]:
    """Return the path length of each object's centroid in pixels, over pairs of frames that show it (K,)."""
    steps = np.diff(centroids(masks), axis=1)  # (K, T - 1, 2)
    return np.nansum(np.hypot(steps[..., 0], steps[..., 1]), axis=1)


def visible_frames(masks: Masks) -> npt.NDArray[np.float64]:
    """Return the number of frames that show each object (K,)."""
    return masks.any(axis=(2, 3)).sum(axis=1).astype(np.float64)


RULES: Mapping[str, Criterion] = {
    "largest": mean_area,
    "most central": centrality,
    "first drawn": drawing_order,
    "moves most": path_length,
    "stays longest visible": visible_frames,
}
"""Rules that choose one object without language."""


def chosen_object(masks: Masks, criterion: Criterion) -> int | None:
    """Return the object that a rule follows.

    Args:
        masks: bool (K, T, H, W).
        criterion: The rule's criterion.

    Returns:
        Index of the object, the lowest in a tie; None if no object is ever visible.
    """
    visible = visible_frames(masks) > 0
    if not visible.any():
        return None
    return int(np.argmax(np.where(visible, criterion(masks), -np.inf)))


def single_objects(case: DiagnosticCase) -> dict[str, CaseResult]:
    """Score the object that each rule follows.

    Args:
        case: A case with a target.

    Returns:
        The result of each rule; rules that choose the same object share one.
    """
    masks = case.clip.masks
    chosen = {name: chosen_object(masks, criterion) for name, criterion in RULES.items()}
    nothing = np.zeros(masks.shape[1:], dtype=np.bool_)
    results = {
        number: score_case(case, nothing if number is None else masks[number]) for number in set(chosen.values())
    }
    return {name: results[number] for name, number in chosen.items()}


def run_controls(
    segmenter: Segmenter[Any],
    splits: Sequence[str] = SPLITS,
    count: int | None = None,
    *,
    mode: Mode = "clips",
    hindsight: bool = False,
    batch: int = 8,
    progress: Callable[[ScoredCase], None] | None = None,
    draw: Draw = diagnostic_cases,
) -> dict[str, tuple[CaseResult, ...]]:
    """Run every control over the cases with a target; arguments as for ``diagnose``.

    Returns:
        Results of each control (``WRONG_SENTENCE`` and each of ``RULES``), for ``Diagnosis.controls``.
    """
    by_rule: dict[str, list[CaseResult]] = {name: [] for name in RULES}

    def draw_and_score(split: str, count: int | None) -> Iterator[DiagnosticCase]:
        """Score the rules while the cases are drawn: drawing a case takes as long as segmenting it."""
        for case in draw(split, count):
            if case.expression.targets:
                for name, result in single_objects(case).items():
                    by_rule[name].append(result)
            yield case

    wrong = diagnose(
        segmenter,
        splits,
        count,
        prompt_with="other",
        mode=mode,
        hindsight=hindsight,
        batch=batch,
        progress=progress,
        draw=draw_and_score,
    )
    return {WRONG_SENTENCE: wrong.cases, **{name: tuple(results) for name, results in by_rule.items()}}


def best_rule(controls: Mapping[str, Iterable[CaseResult]], split: str | None = None) -> tuple[str, float] | None:
    """Return the rule with the highest score.

    It is chosen by the ground truth and is thus an upper bound for following one object without language.

    Args:
        controls: Results of the controls by name.
        split: The split; default all.

    Returns:
        Name and J&F in percent (over all splits, the mean of their means); None without results.
    """
    scores = {
        name: mean_over_splits(case for case in controls[name] if split is None or case.split == split)
        for name in RULES
        if name in controls
    }
    known = {name: value for name, value in scores.items() if value is not None}
    return max(known.items(), key=lambda item: item[1]) if known else None


def centroids(masks: Masks) -> npt.NDArray[np.float64]:
    """Return row and column of each object's centroid in each frame, NaN where it is not visible.

    Args:
        masks: bool (K, T, H, W).

    Returns:
        (K, T, 2) in pixels.
    """
    rows, columns = masks.sum(axis=3), masks.sum(axis=2)  # (K, T, H), (K, T, W): pixels in each row, each column
    areas = rows.sum(axis=2).astype(np.float64)
    areas[areas == 0] = np.nan
    return np.stack(
        [(rows @ np.arange(rows.shape[2])) / areas, (columns @ np.arange(columns.shape[2])) / areas], axis=-1
    )
