"""What an evaluation found: a record for each case, summaries over them, and the file they are kept in."""

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
    from refervos.worlds.descriptions import Referral

Masks = npt.NDArray[np.bool_]

FORMAT = 1
"""Version of the JSON layout."""


@dataclass(frozen=True)
class CaseResult:
    """How one sentence about one clip was answered.

    Attributes:
        split: What the case probes, such as ``spatial``.
        index: Its number within the split.
        text: The sentence that was asked.
        family: Kind of the sentence.
        frames: Length of the clip T.
        has_target: Whether the case's own sentence means anything in the clip.
        j: Region similarity J in [0, 1], mean over all frames; 1 in a frame where truth and prediction are empty.
        f: Boundary accuracy F in [0, 1], likewise.
        empty: Whether the prediction has no pixel in any frame.
        visible: Frames in which the target shows.
        missed: Those of them that were answered with nothing.
        false_alarms: Frames without the target that were answered with something.
        switches: Frames in which memory was rewritten.
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
    """The cases of one split together; shares in percent.

    Attributes:
        count: Number of cases.
        j: Mean J over the cases.
        f: Mean F.
        j_and_f: Mean of both.
        missed: Of all frames that show the target, those answered with nothing; None when it never shows.
        false_alarms: Of all frames that do not show it, those answered with something; None when it always shows.
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

    All summaries are in percent. ``target_mean`` is the headline: the mean of J&F over the splits whose sentences have
    a target, so that a split with longer and fewer clips counts as much as the others.

    Attributes:
        model: What was diagnosed.
        clip_length: Frames that it looked at together; 1 is online.
        cases: One result a case, ordered by split and index.
        controls: For each control, its results on the cases that have a target (see ``refervos.diagnosis.controls``).
    """

    model: str
    clip_length: int
    cases: tuple[CaseResult, ...]
    controls: Mapping[str, tuple[CaseResult, ...]] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits' names, in their order."""
        return tuple(dict.fromkeys(case.split for case in self.cases))

    @property
    def headline_cases(self) -> tuple[CaseResult, ...]:
        """The cases of the benchmark's first ten splits, which all published figures are about; else what there is."""
        return tuple(case for case in self.cases if case.split in SPLITS) or self.cases

    @property
    def target_cases(self) -> tuple[CaseResult, ...]:
        """The cases whose sentence means something."""
        return tuple(case for case in self.headline_cases if case.has_target)

    def of_split(self, split: str) -> tuple[CaseResult, ...]:
        """The cases of one split."""
        return tuple(case for case in self.cases if case.split == split)

    def summary(self, split: str) -> SplitSummary:
        """The cases of one split together."""
        return summarise(self.of_split(split))

    @property
    def target_mean(self) -> float | None:
        """J&F averaged over the target splits' means; the headline. None without target cases."""
        return mean_over_splits(self.target_cases)

    @property
    def target_case_mean(self) -> float | None:
        """J&F averaged over all target cases, each counting the same."""
        cases = self.target_cases
        return 100 * fmean(case.j_and_f for case in cases) if cases else None

    @property
    def presence(self) -> PresenceAccuracies:
        """N-acc and T-acc in [0, 1]."""
        cases = self.headline_cases
        return presence_accuracies([case.has_target for case in cases], [case.empty for case in cases])

    @property
    def n_acc(self) -> float | None:
        """N-acc: no-target cases answered with nothing, in percent."""
        return _percent(self.presence.no_target)

    @property
    def t_acc(self) -> float | None:
        """T-acc: target cases answered with something, in percent."""
        return _percent(self.presence.target)

    @property
    def final(self) -> float | None:
        """Mean of ``target_mean``, N-acc and T-acc; None where one of them is missing."""
        mean, n_acc, t_acc = self.target_mean, self.n_acc, self.t_acc
        return None if mean is None or n_acc is None or t_acc is None else final_score(mean, n_acc, t_acc)

    @property
    def frames_per_second(self) -> float | None:
        """Frames over the model's time; drawing and scoring do not count."""
        seconds = sum(case.seconds for case in self.cases)
        return sum(case.frames for case in self.cases) / seconds if seconds else None

    def to_json(self) -> dict[str, Any]:
        """As plain values; ``summary`` is for readers, everything else is what ``from_json`` reads."""
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
        """Read what ``to_json`` made.

        Args:
            values: The plain values.
            where: Their name in error messages, such as a file's path.

        Raises:
            EvaluationError: When they are something else.
        """
        wanted: dict[str, Callable[[Any], bool]] = {
            "format": lambda value: value == FORMAT,
            "model": lambda value: isinstance(value, str),
            "clip_length": lambda value: isinstance(value, int),
            "cases": lambda value: isinstance(value, list),
            "controls": lambda value: isinstance(value, dict),
        }
        for name, fits in wanted.items():
            if not isinstance(values, dict) or name not in values or not fits(values[name]):
                raise EvaluationError(f"{where} has no valid {name!r}; give a file of 'refervos diagnose --out'.")
        return cls(
            model=values["model"],
            clip_length=values["clip_length"],
            cases=_read_cases(values["cases"], where),
            controls={name: _read_cases(cases, where) for name, cases in values["controls"].items()},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file that ``read_diagnosis`` reads; it is there complete or not at all.

        Raises:
            EvaluationError: When it cannot be written.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(Path(path), error, EvaluationError) from error
        write_atomically(Path(path), (json.dumps(self.to_json(), indent=1) + "\n").encode(), error=EvaluationError)


def read_diagnosis(path: str | os.PathLike[str]) -> Diagnosis:
    """Read a file written by ``Diagnosis.save``.

    Raises:
        EvaluationError: When there is no such file, or it holds something else.
    """
    try:
        values = parse_json(Path(path).read_text(encoding="utf-8"), str(path), EvaluationError)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not valid JSON ({error}).") from error
    return Diagnosis.from_json(values, str(path))


def summarise(cases: Sequence[CaseResult]) -> SplitSummary:
    """Average cases, each counting the same.

    Args:
        cases: At least one.
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
    """J&F in percent, averaged within each split and then over the splits; None without cases."""
    scores: dict[str, list[float]] = {}
    for case in cases:
        scores.setdefault(case.split, []).append(case.j_and_f)
    return 100 * fmean(fmean(values) for values in scores.values()) if scores else None


def scores_of_clip(truth: Masks, predicted: Masks) -> tuple[float, float]:
    """J and F of a clip, means over all frames (MeViS).

    Args:
        truth: bool (T, H, W).
        predicted: bool (T, H, W).

    Returns:
        J and F in [0, 1].
    """
    regions, boundaries = video_scores(truth, predicted)
    return float(regions.mean()), float(boundaries.mean())


def score_case(
    case: DiagnosticCase,
    predicted: Masks,
    *,
    asked: Referral | None = None,
    switches: int = 0,
    seconds: float = 0.0,
) -> CaseResult:
    """Score a prediction against what the case's own sentence means.

    Args:
        case: The clip and its sentence.
        predicted: bool (T, H, W).
        asked: What was asked where it was another sentence.
        switches: How often memory was rewritten.
        seconds: Time the model took.
    """
    truth = case.clip.target_masks(case.referral)
    asked = asked or case.referral
    j, f = scores_of_clip(truth, predicted)
    shows, answered = truth.any(axis=(1, 2)), predicted.any(axis=(1, 2))  # (T,) each
    return CaseResult(
        split=case.split,
        index=case.index,
        text=asked.text,
        family=asked.family,
        frames=len(truth),
        has_target=bool(case.referral.targets),
        j=j,
        f=f,
        empty=is_empty(predicted),
        visible=int(np.count_nonzero(shows)),
        missed=int(np.count_nonzero(shows & ~answered)),
        false_alarms=int(np.count_nonzero(~shows & answered)),
        switches=switches,
        seconds=seconds,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _read_cases(values: Any, where: str) -> tuple[CaseResult, ...]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise EvaluationError(f"{where} has cases that are no list of mappings.")
    try:
        return tuple(config_from_mapping(CaseResult, value, f"{where}, case {n}") for n, value in enumerate(values))
    except ConfigError as error:
        raise EvaluationError(str(error)) from error
