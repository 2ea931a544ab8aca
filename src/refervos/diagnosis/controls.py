"""What a score is worth: answers that need no language, scored as the model is.

Two controls over the cases that have a target. The *wrong sentence*: the same model is asked about another object; what
it still scores, it did not find by reading. The *best single object*: a rule that never reads picks one object of the
clip and follows its true mask; a model that reads should beat every rule, although the rules' masks are perfect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from refervos.diagnosis.diagnose import AnsweredCase, Draw, diagnose
from refervos.diagnosis.results import CaseResult, Masks, mean_over_splits, score_case
from refervos.evaluation.answers import Mode
from refervos.segmenter import Segmenter
from refervos.worlds.benchmark import SPLITS, DiagnosticCase, diagnostic_cases

WRONG_SENTENCE = "wrong sentence"
"""Name of the control that asks about another object."""

Merit: TypeAlias = Callable[[Masks], npt.NDArray[np.float64]]
"""What a rule prefers: object masks bool (K, T, H, W) to one number an object (K,); the largest is chosen."""


def mean_area(masks: Masks) -> npt.NDArray[np.float64]:
    """Pixels of each object, mean over the frames that show it (K,)."""
    areas = masks.sum(axis=(2, 3))  # (K, T)
    return areas.sum(axis=1) / np.maximum(visible_frames(masks), 1)


def centrality(masks: Masks) -> npt.NDArray[np.float64]:
    """Minus each object's distance from the middle of the frame in pixels, mean over the frames that show it (K,)."""
    height, width = masks.shape[2:]
    distances = np.hypot(*(centroids(masks) - np.array([(height - 1) / 2, (width - 1) / 2])).transpose(2, 0, 1))
    return -np.nansum(distances, axis=1) / np.maximum(visible_frames(masks), 1)


def drawing_order(masks: Masks) -> npt.NDArray[np.float64]:
    """Earlier is more (K,)."""
    return -np.arange(len(masks), dtype=np.float64)


def path_length(masks: Masks) -> npt.NDArray[np.float64]:
    """Length in pixels of each visible centroid's path, over consecutive frames that both show it (K,)."""
    steps = np.diff(centroids(masks), axis=1)  # (K, T - 1, 2)
    return np.nansum(np.hypot(steps[..., 0], steps[..., 1]), axis=1)


def visible_frames(masks: Masks) -> npt.NDArray[np.float64]:
    """Frames that show each object (K,)."""
    return masks.any(axis=(2, 3)).sum(axis=1).astype(np.float64)


RULES: Mapping[str, Merit] = {
    "largest": mean_area,
    "most central": centrality,
    "first drawn": drawing_order,
    "moves most": path_length,
    "stays longest visible": visible_frames,
}
"""The rules that pick one object without reading."""


def chosen_object(masks: Masks, merit: Merit) -> int | None:
    """Which object a rule follows.

    Args:
        masks: bool (K, T, H, W).
        merit: What the rule prefers.

    Returns:
        Its number, the lowest where several are as good; None when no object ever shows.
    """
    shown = visible_frames(masks) > 0
    if not shown.any():
        return None
    return int(np.argmax(np.where(shown, merit(masks), -np.inf)))


def single_objects(case: DiagnosticCase) -> dict[str, CaseResult]:
    """Score the object that each rule follows; an object is scored once, however many rules choose it.

    Args:
        case: A case with a target.

    Returns:
        For each rule, its result.
    """
    masks = case.clip.masks
    chosen = {name: chosen_object(masks, merit) for name, merit in RULES.items()}
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
    batch: int = 8,
    progress: Callable[[AnsweredCase], None] | None = None,
    draw: Draw = diagnostic_cases,
) -> dict[str, tuple[CaseResult, ...]]:
    """Run every control over the cases that have a target; arguments as for ``diagnose``.

    Returns:
        For each control, ``WRONG_SENTENCE`` and those of ``RULES``, its results; to be put into ``Diagnosis.controls``.
    """
    found: dict[str, list[CaseResult]] = {name: [] for name in RULES}

    def followed(split: str, count: int | None) -> Iterator[DiagnosticCase]:
        """Score the rules on each case on its way to the model: drawing a case takes as long as answering it."""
        for case in draw(split, count):
            if case.referral.targets:
                for name, result in single_objects(case).items():
                    found[name].append(result)
            yield case

    wrong = diagnose(segmenter, splits, count, ask="other", mode=mode, batch=batch, progress=progress, draw=followed)
    return {WRONG_SENTENCE: wrong.cases, **{name: tuple(results) for name, results in found.items()}}


def best_rule(controls: Mapping[str, Iterable[CaseResult]], split: str | None = None) -> tuple[str, float] | None:
    """The rule that scores highest.

    Chosen with the truth at hand, so it is an upper bound on what following one object without reading can reach.

    Args:
        controls: Results of the controls by name.
        split: Where; default over the splits.

    Returns:
        Its name and its J&F in percent (over the splits: the mean of their means), None without results.
    """
    scores = {
        name: mean_over_splits(case for case in controls[name] if split is None or case.split == split)
        for name in RULES
        if name in controls
    }
    known = {name: value for name, value in scores.items() if value is not None}
    return max(known.items(), key=lambda item: item[1]) if known else None


def centroids(masks: Masks) -> npt.NDArray[np.float64]:
    """Row and column of each object's middle in each frame, NaN where it does not show.

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
