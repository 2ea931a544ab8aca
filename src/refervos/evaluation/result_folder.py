"""The folder of an evaluation, and the settings that its results depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.data.sample import Sample
from refervos.errors import EvaluationError
from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.expression_scores import ExpressionResult, read_json, read_result, result_from, save_json
from refervos.evaluation.matched import MatchedResult, annotators
from refervos.evaluation.predictions import Predictions


@dataclass(frozen=True)
class ResultFolder:
    """Folder of an evaluation.

    Attributes:
        root: The folder, with ``predictions``, ``results`` and ``settings.json``; for Ref-DAVIS17 also ``merged`` and
            ``matched``; and finally the tables.
    """

    root: Path

    @property
    def predictions(self) -> Predictions:
        """Predicted masks."""
        return Predictions(self.root / "predictions")

    def result(self, sample: Sample) -> Path:
        """Return the path of an expression's result."""
        return self.root / "results" / sample.video.id / f"{sample.expression_id}.json"

    def merged(self, video: str, annotator: str) -> Path:
        """Return the folder of an annotator's merged predictions for a video."""
        return self.root / "merged" / video / annotator

    def matched(self, video: str, annotator: str) -> Path:
        """Return the path of an annotator's result by the published protocol."""
        return self.root / "matched" / video / f"{annotator}.json"

    @property
    def settings(self) -> Path:
        """Path of the settings that the results depend on."""
        return self.root / "settings.json"

    def is_complete(self, group: Sequence[Sample], matching: bool) -> bool:
        """Check if all results of a group exist."""
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
        """Read the results by the published protocol; empty for benchmarks other than Ref-DAVIS17.

        Raises:
            EvaluationError: When one is missing or damaged.
        """
        files = [self.matched(video, annotator) for video, annotator in annotators(part)]
        return [result_from(read_json(file), MatchedResult, file) for file in files]


@dataclass(frozen=True)
class Settings:
    """Settings that the results in a folder depend on.

    Attributes:
        model: Name of the model.
        part: The data set; its folder and number of videos may differ between runs.
        binding: Values that must be the same in every run, by name.
        command: The command, for the model card; None if it is unknown.
        commit: Repository and commit of a model from the hub; None for others.
    """

    model: str
    part: Part
    binding: Mapping[str, Any]
    command: str | None = None
    commit: str | None = None

    def claim(self, folder: ResultFolder) -> None:
        """Write the settings, or check that those in the folder are the same.

        Raises:
            EvaluationError: When they differ.
        """
        binding = json.loads(json.dumps(self.binding))  # as they would be read back
        if not folder.settings.exists():
            data = self.part.folder
            values = {
                "model": self.model,
                "commit": self.commit,
                "command": self.command,
                "data": None if data is None else str(data.resolve()),
                "binding": binding,
            }
            save_json(values, folder.settings)
            return
        earlier = read_json(folder.settings)
        earlier = earlier.get("binding") if isinstance(earlier, dict) else None
        if not isinstance(earlier, dict):
            raise EvaluationError(f"{folder.settings} holds no settings of an evaluation; give another folder.")
        for name in dict.fromkeys([*earlier, *binding]):
            if earlier.get(name) != binding.get(name):
                raise EvaluationError(
                    f"{folder.root} holds results with {name} {_abbreviated(earlier.get(name))}, not "
                    f"{_abbreviated(binding.get(name))}; give another folder, or the same settings."
                )


def _abbreviated(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
