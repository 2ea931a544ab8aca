"""The diagnostic benchmark as a data set, with clips rendered on demand."""

from __future__ import annotations

import numpy as np
import pytest

from refervos.data.files import Problems
from refervos.data.layouts import worlds as worlds_benchmark
from refervos.data.layouts.worlds import read_worlds
from refervos.errors import DataError
from refervos.worlds.benchmark import SPLITS, DiagnosticCase, diagnostic_case, diagnostic_cases


def test_samples_are_the_cases_of_the_benchmark() -> None:
    dataset = read_worlds(None, "spatial", Problems())
    assert len(dataset) == 60
    for sample, case in zip(dataset.samples, diagnostic_cases("spatial", 2), strict=False):
        assert sample.expression == case.expression.text
        assert (sample.kind, sample.has_target) == ("spatial", True)
        assert len(sample.video) == len(case.clip.frames)
        assert sample.ground_truth is not None
        masks = case.clip.target_masks(case.expression)
        for index in sample.ground_truth.annotated:
            np.testing.assert_array_equal(sample.video.frames.read(index), case.clip.frames[index])
            np.testing.assert_array_equal(sample.ground_truth.mask(index), masks[index])


def test_clips_are_rendered_on_demand_and_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []

    def draw(split: str, index: int) -> DiagnosticCase:
        drawn.append((split, index))
        return diagnostic_case(split, index)

    monkeypatch.setattr(worlds_benchmark, "diagnostic_case", draw)
    dataset = read_worlds(None, "all", Problems())
    assert len(dataset) == 560
    assert list(dict.fromkeys(sample.kind for sample in dataset.samples)) == list(SPLITS)
    assert {len(video) for video, _ in dataset.videos()} == {24, 200}
    assert len({video.id for video, _ in dataset.videos()}) == 560
    assert not drawn
    for sample in dataset.samples[:2]:
        assert sample.expression
        assert sample.ground_truth is not None
        assert sample.video.frames.read(23).shape == (*sample.ground_truth.mask(0).shape, 3)
    assert drawn == [("appearance", 0), ("appearance", 1)]


def test_expressions_without_target_are_marked_and_unknown_splits_refused() -> None:
    assert {sample.has_target for sample in read_worlds(None, "no-target", Problems()).samples} == {False}
    with pytest.raises(DataError, match="'easy'"):
        read_worlds(None, "easy", Problems())
