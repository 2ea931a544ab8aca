"""The folder that an evaluation is kept in, and what the results in it depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.data.sample import Sample
from refervos.errors import EvaluationError
from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.expressions import ExpressionResult, read_json, read_result, result_from, save_json
from refervos.evaluation.matched import MatchedResult, annotators
from refervos.evaluation.predictions import Predictions


@dataclass(frozen=True)
class ResultFolder:
    """Where an evaluation is kept.

    Attributes:
        root: The folder; it holds ``predictions``, ``results`` and ``settings.json``, of Ref-DAVIS17 also ``merged``
            and ``matched``, and at the end the tables.
    """

    root: Path

    @property
    def predictions(self) -> Predictions:
        """The masks."""
        return Predictions(self.root / "predictions")

    def result(self, sample: Sample) -> Path:
        """The file of an expression's result."""
        return self.root / "results" / sample.video.id / f"{sample.expression_id}.json"

    def merged(self, video: str, annotator: str) -> Path:
        """The folder of an annotator's merged answers about a video."""
        return self.root / "merged" / video / annotator

    def matched(self, video: str, annotator: str) -> Path:
        """The file of an annotator's result by the published protocol."""
        return self.root / "matched" / video / f"{annotator}.json"

    @property
    def settings(self) -> Path:
        """The file of what the results depend on."""
        return self.root / "settings.json"

    def holds(self, group: Sequence[Sample], matching: bool) -> bool:
        """Whether all results of a group are there."""
        files = [self.result(sample) for sample in group]
        if matching:
            files.append(self.matched(group[0].video.id, str(group[0].annotator)))
        return all(file.exists() for file in files)

    def results(self, part: OpenPart) -> list[ExpressionResult]:
        """Read the results of all expressions.

        Raises:
            EvaluationError: When one is missing or damaged.
        """
        return [read_result(self.result(sample)) for sample in part.samples()]

    def matched_results(self, part: OpenPart) -> list[MatchedResult]:
        """Read the results by the published protocol; none for benchmarks but Ref-DAVIS17.

        Raises:
            EvaluationError: When one is missing or damaged.
        """
        files = [self.matched(video, annotator) for video, annotator in annotators(part)]
        return [result_from(read_json(file), MatchedResult, file) for file in files]


@dataclass(frozen=True)
class Settings:
    """What the results in a folder depend on.

    Attributes:
        model: Its name as it was given.
        part: The data set; its folder and how many videos may differ from run to run.
        binding: What must be the same in every run, by name.
    """

    model: str
    part: Part
    binding: Mapping[str, Any]

    def claim(self, folder: ResultFolder) -> None:
        """Write them down, or make sure that those written down are the same.

        Raises:
            EvaluationError: When they are not.
        """
        binding = json.loads(json.dumps(self.binding))  # as they would be read
        if not folder.settings.exists():
            data = self.part.folder
            values = {"model": self.model, "data": None if data is None else str(data.resolve()), "binding": binding}
            save_json(values, folder.settings)
            return
        before = read_json(folder.settings)
        before = before.get("binding") if isinstance(before, dict) else None
        if not isinstance(before, dict):
            raise EvaluationError(f"{folder.settings} holds no settings of an evaluation; give another folder.")
        for name in dict.fromkeys([*before, *binding]):
            if before.get(name) != binding.get(name):
                raise EvaluationError(
                    f"{folder.root} was begun with {name} {_shown(before.get(name))} and not "
                    f"{_shown(binding.get(name))}; give another folder, or the same settings."
                )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
