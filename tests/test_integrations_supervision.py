"""supervision's detections: masks, tracks, expressions and frame numbers arrive, and its own code works on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from difficult_masks import EXPRESSIONS, INDICES, TIMES, difficult_video, visible_masks
from refervos.integrations.supervision import to_detections
from video_files import segmentation

supervision = pytest.importorskip("supervision", reason="the extra 'supervision' installs it")


@pytest.mark.parametrize("overlapping", [False, True])
def test_detections_hold_the_masks_of_the_visible_objects(overlapping: bool) -> None:
    video = difficult_video(overlapping=overlapping)
    found = {}
    for frame, result in video:
        detections: Any = to_detections(result, frame)
        index = detections.metadata["frame_index"]
        assert detections.metadata["time"] == TIMES[INDICES.index(index)]
        for xyxy, mask, confidence, _, track, data in detections:
            assert data["class_name"] == EXPRESSIONS[track]
            assert confidence == pytest.approx(0.9)
            rows, columns = np.nonzero(mask)
            assert xyxy.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
            found[index, int(track)] = mask
    expected = visible_masks(video)
    assert sorted(found) == sorted(expected)
    for key, mask in expected.items():
        np.testing.assert_array_equal(found[key], mask)


def test_tracks_with_one_expression_are_one_class() -> None:
    masks = np.eye(3, dtype=bool).reshape(3, 1, 3)
    result = segmentation(4, masks, ids=(5, 8, 9))
    detections: Any = to_detections(replace(result, expressions=("a", "b", "a")))
    assert detections.class_id.tolist() == [0, 1, 0]
    assert detections.tracker_id.tolist() == [5, 8, 9]
    assert detections.metadata == {"frame_index": 4, "time": None}


def test_a_frame_without_visible_objects_has_no_detections() -> None:
    for count in (0, 2):
        detections: Any = to_detections(segmentation(0, np.zeros((count, 6, 7), bool)))
        assert len(detections) == 0
        assert detections.mask.shape == (0, 6, 7)
        assert supervision.MaskAnnotator().annotate(np.zeros((6, 7, 3), np.uint8), detections).max() == 0


def test_annotators_filters_and_sinks_of_supervision_take_the_detections() -> None:
    frame, result = difficult_video()[2]
    detections: Any = to_detections(result, frame)
    black = np.zeros_like(frame.image)
    painted = supervision.MaskAnnotator(color_lookup=supervision.ColorLookup.TRACK, opacity=1).annotate(
        black.copy(), detections
    )
    np.testing.assert_array_equal(painted.any(-1), result.masks.any(0))
    assert detections[detections.area > 20].tracker_id.tolist() == [4, 7]
    labelled = supervision.LabelAnnotator(color_lookup=supervision.ColorLookup.TRACK).annotate(
        black.copy(), detections, labels=list(detections.data["class_name"])
    )
    assert labelled.any()
