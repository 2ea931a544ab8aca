"""Results of a diagnosis: a record for each case, summaries over them, and their file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refervos.errors import ConfigError, EvaluationError
from refervos.files.plain_text import parse_json
from refervos.files.writing import write_atomically, write_error
from refervos.metrics.presence import PresenceAccuracies, final_score, is_empty, presence_accuracies
from refervos.metrics.region_boundary import video_scores
from refervos.typed_config import config_from_mapping
from refervos.worlds.benchmark import SPLITS

if TYPE_CHECKING:
    from refervos.worlds.benchmark import DiagnosticCase
    from refervos.worlds.descriptions import Expression

Masks = npt.NDArray[np.bool_]

FORMAT = 1
"""Version of the JSON layout."""


@dataclass(frozen=True)
class CaseResult:
    """Result of one sentence about one clip.

    Attributes:
        split: Split of the benchmark, such as ``spatial``.
        index: Index within the split.
        text: The sentence used as prompt.
        family: Kind of sentence.
        frames: Length of the clip T.
        has_target: True if the case's own sentence has a target in the clip.
        j: Region similarity J in [0, 1], mean over all frames; 1 in a frame where both masks are empty.
        f: Boundary accuracy F in [0, 1], likewise.
        empty: True if the prediction has no pixel in any frame.
        visible: Frames that show the target.
        missed: Frames that show the target but have an empty prediction.
        false_alarms: Frames without the target that have a non-empty prediction.
        switches: Frames in which the memory was rewritten.
        seconds: Time the model took.
    """

    split: str
    index: int
    text: str
    family: str
    frames: int
    has_target: bool
    j: float
    f: float
    empty: bool
    visible: int
    missed: int
    false_alarms: int
    switches: int = 0
    seconds: float = 0.0

    @property
    def j_and_f(self) -> float:
        """Mean of J and F, in [0, 1]."""
        return (self.j + self.f) / 2


@dataclass(frozen=True)
class SplitSummary:
    """Summary of the cases of one split, in percent.

    Attributes:
        count: Number of cases.
        j: Mean J over the cases.
        f: Mean F.
        j_and_f: Mean of both.
        missed: Frames with an empty prediction, of those that show the target; None if it never shows.
        false_alarms: Frames with a non-empty prediction, of those that do not show it; None if it always shows.
    """

    count: int
    j: float
    f: float
    j_and_f: float
    missed: float | None
    false_alarms: float | None


@dataclass(frozen=True)
class Diagnosis:
    """A model's results on the diagnostic benchmark.

    All summaries are in percent. The headline is ``target_mean``: J&F averaged over the splits with targets, so that a
    split of fewer, longer clips counts as much as the others.

    Attributes:
        model: Name of the model.
        clip_length: Frames processed as one clip; 1 is online.
        cases: One result per case, ordered by split and index.
        controls: Results of each control on the cases with a target (see ``refervos.diagnosis.controls``).
    """

    model: str
    clip_length: int
    cases: tuple[CaseResult, ...]
    controls: Mapping[str, tuple[CaseResult, ...]] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order."""
        return tuple(dict.fromkeys(case.split for case in self.cases))

    @property
    def headline_cases(self) -> tuple[CaseResult, ...]:
        """Cases of the benchmark's first ten splits, the basis of all headline figures; all cases if there are none."""
        return tuple(case for case in self.cases if case.split in SPLITS) or self.cases

    @property
    def target_cases(self) -> tuple[CaseResult, ...]:
        """Headline cases with a target."""
        return tuple(case for case in self.headline_cases if case.has_target)

    def of_split(self, split: str) -> tuple[CaseResult, ...]:
        """Return the cases of one split."""
        return tuple(case for case in self.cases if case.split == split)

    def summary(self, split: str) -> SplitSummary:
        """Summarise the cases of one split."""
        return summarise(self.of_split(split))

    @property
    def target_mean(self) -> float | None:
        """Mean of J&F over the splits with targets, the headline; None without target cases."""
        return mean_over_splits(self.target_cases)

    @property
    def target_case_mean(self) -> float | None:
        """Mean of J&F over all target cases; None without any."""
        cases = self.target_cases
        return 100 * fmean(case.j_and_f for case in cases) if cases else None

    @property
    def presence(self) -> PresenceAccuracies:
        """N-acc and T-acc in [0, 1]."""
        cases = self.headline_cases
        return presence_accuracies([case.has_target for case in cases], [case.empty for case in cases])

    @property
    def n_acc(self) -> float | None:
        """N-acc: no-target cases with an empty prediction, in percent."""
        return _percent(self.presence.no_target)

    @property
    def t_acc(self) -> float | None:
        """T-acc: target cases with a non-empty prediction, in percent."""
        return _percent(self.presence.target)

    @property
    def final(self) -> float | None:
        """Mean of ``target_mean``, N-acc and T-acc; None if one is missing."""
        mean, n_acc, t_acc = self.target_mean, self.n_acc, self.t_acc
        return None if mean is None or n_acc is None or t_acc is None else final_score(mean, n_acc, t_acc)

    @property
    def frames_per_second(self) -> float | None:
        """Frames per second of the model's time, without drawing and scoring; None if no time was measured."""
        seconds = sum(case.seconds for case in self.cases)
        return sum(case.frames for case in self.cases) / seconds if seconds else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``from_json`` reads all of them but ``summary``, which is for people."""
        return {
            "format": FORMAT,
            "model": self.model,
            "clip_length": self.clip_length,
            "summary": {
                "splits": {split: dataclasses.asdict(self.summary(split)) for split in self.splits},
                "target_mean": self.target_mean,
                "target_case_mean": self.target_case_mean,
                "n_acc": self.n_acc,
                "t_acc": self.t_acc,
                "final": self.final,
                "frames_per_second": self.frames_per_second,
            },
            "cases": [dataclasses.asdict(case) for case in self.cases],
            "controls": {name: [dataclasses.asdict(c) for c in cases] for name, cases in self.controls.items()},
        }

    @classmethod
    def from_json(cls, values: Any, where: str = "the diagnosis") -> Diagnosis:
        """Create a diagnosis from the values of ``to_json``.

        Args:
            values: The plain values.
            where: Their name in error messages, such as a path.

        Raises:
            EvaluationError: When the values are not a diagnosis.
        """
        checks: dict[str, Callable[[Any], bool]] = {
            "format": lambda value: value == FORMAT,
            "model": lambda value: isinstance(value, str),
            "clip_length": lambda value: isinstance(value, int),
            "cases": lambda value: isinstance(value, list),
            "controls": lambda value: isinstance(value, dict),
        }
        for name, is_valid in checks.items():
            if not isinstance(values, dict) or name not in values or not is_valid(values[name]):
                raise EvaluationError(f"{where} has no valid {name!r}; give a file of 'refervos diagnose --out'.")
        return cls(
            model=values["model"],
            clip_length=values["clip_length"],
            cases=_read_cases(values["cases"], where),
            controls={name: _read_cases(cases, where) for name, cases in values["controls"].items()},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file for ``read_diagnosis``; the file is complete or absent.

        Raises:
            EvaluationError: When the file cannot be written.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(Path(path), error, EvaluationError) from error
        write_atomically(Path(path), (json.dumps(self.to_json(), indent=1) + "\n").encode(), error=EvaluationError)


def read_diagnosis(path: str | os.PathLike[str]) -> Diagnosis:
    """Read a file written by ``Diagnosis.save``.

    Raises:
        EvaluationError: When the file is missing or is not a diagnosis.
    """
    try:
        values = parse_json(Path(path).read_text(encoding="utf-8"), str(path), EvaluationError)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not valid JSON ({error}).") from error
    return Diagnosis.from_json(values, str(path))


def summarise(cases: Sequence[CaseResult]) -> SplitSummary:
    """Average cases with equal weights.

    Args:
        cases: At least one case.
    """
    visible = sum(case.visible for case in cases)
    absent = sum(case.frames for case in cases) - visible
    return SplitSummary(
        count=len(cases),
        j=100 * fmean(case.j for case in cases),
        f=100 * fmean(case.f for case in cases),
        j_and_f=100 * fmean(case.j_and_f for case in cases),
        missed=100 * sum(case.missed for case in cases) / visible if visible else None,
        false_alarms=100 * sum(case.false_alarms for case in cases) / absent if absent else None,
    )


def mean_over_splits(cases: Iterable[CaseResult]) -> float | None:
    """Return J&F in percent, averaged within each split, then over the splits; None without cases."""
    scores: dict[str, list[float]] = {}
    for case in cases:
        scores.setdefault(case.split, []).append(case.j_and_f)
    return 100 * fmean(fmean(values) for values in scores.values()) if scores else None


def scores_of_clip(ground_truth: Masks, predicted: Masks) -> tuple[float, float]:
    """Return J and F of a clip, means over all frames (MeViS).

    Args:
        ground_truth: bool (T, H, W).
        predicted: bool (T, H, W).

    Returns:
        J and F in [0, 1].
    """
    regions, boundaries = video_scores(ground_truth, predicted)
    return float(regions.mean()), float(boundaries.mean())


def score_case(
    case: DiagnosticCase,
    predicted: Masks,
    *,
    prompt: Expression | None = None,
    switches: int = 0,
    seconds: float = 0.0,
) -> CaseResult:
    """Score a prediction against the target of the case's own sentence.

    Args:
        case: The clip and its sentence.
        predicted: bool (T, H, W).
        prompt: The sentence used as prompt; default the case's own.
        switches: Frames in which the memory was rewritten.
        seconds: Time the model took.
    """
    ground_truth = case.clip.target_masks(case.expression)
    prompt = prompt or case.expression
    j, f = scores_of_clip(ground_truth, predicted)
    visible, non_empty = ground_truth.any(axis=(1, 2)), predicted.any(axis=(1, 2))  # (T,) each
    return CaseResult(
        split=case.split,
        index=case.index,
        text=prompt.text,
        family=prompt.family,
        frames=len(ground_truth),
        has_target=bool(case.expression.targets),
        j=j,
        f=f,
        empty=is_empty(predicted),
        visible=int(np.count_nonzero(visible)),
        missed=int(np.count_nonzero(visible & ~non_empty)),
        false_alarms=int(np.count_nonzero(~visible & non_empty)),
        switches=switches,
        seconds=seconds,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _read_cases(values: Any, where: str) -> tuple[CaseResult, ...]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise EvaluationError(
            f"{where} has cases that are not a list of mappings; give a file of 'refervos diagnose --out'."
        )
    try:
        return tuple(config_from_mapping(CaseResult, value, f"{where}, case {n}") for n, value in enumerate(values))
    except ConfigError as error:
        raise EvaluationError(str(error)) from error
