"""Read results for a model card from the folders of evaluations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refervos.checkpoints.card import MeasuredResult
from refervos.errors import EvaluationError
from refervos.evaluation.expression_scores import read_json
from refervos.evaluation.result_folder import ResultFolder


def read_results(folder: str | os.PathLike[str]) -> list[MeasuredResult]:
    """Read the measures of an evaluation over all expressions, for ``save_pretrained`` and ``push_to_hub``.

    Args:
        folder: Folder that ``refervos eval --out`` wrote.

    Returns:
        One result per measure, the data set's headline first.

    Raises:
        EvaluationError: When the folder has no results of an evaluation, or they are damaged.
    """
    root = Path(folder)
    settings, summary = read_json(ResultFolder(root).settings), read_json(root / "summary.json")
    try:
        binding = settings["binding"]
        return [
            MeasuredResult(
                dataset=str(binding["dataset"]),
                split=str(binding["split"]),
                measure=name,
                value=float(mean),
                low=float(low),
                high=float(high),
                command=settings.get("command"),
                weights=str(binding["weights"]),
            )
            for name, (mean, low, high) in _measures(summary)
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EvaluationError(
            f"{root} has no complete results of an evaluation; run 'refervos eval' again, which continues there."
        ) from error


def _measures(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Yield the measures over all expressions that have a value."""
    values = {**summary["groups"][0]["values"], **summary["measures"]}
    yield from ((name, interval) for name, interval in values.items() if interval is not None)
