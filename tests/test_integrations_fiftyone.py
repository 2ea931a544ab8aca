"""FiftyOne: samples without a database, masks rendered by FiftyOne itself equal to the pixel, and the model wrapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refervos
from difficult_masks import EXPRESSIONS, HEIGHT, INDICES, WIDTH, difficult_video, masks_of
from refervos.errors import PromptError
from refervos.integrations.run_lengths import Box
from refervos.pipeline import segment_frames

VIDEO = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"


fiftyone = pytest.importorskip("fiftyone", reason="fiftyone has 150 packages: install the extra 'fiftyone'")


@pytest.fixture
def adapter() -> Any:
    import refervos.integrations.fiftyone as adapter

    return adapter


def rendered(detection: Any) -> np.ndarray:
    """Render a detection with FiftyOne's own code."""
    return np.asarray(detection.to_segmentation(frame_size=(WIDTH, HEIGHT), target=1).mask) == 1


@pytest.mark.parametrize("overlapping", [False, True])
def test_masks_are_rendered_equal_to_the_pixel(adapter: Any, overlapping: bool) -> None:
    video = difficult_video(overlapping=overlapping)
    sample = adapter.to_sample(VIDEO, video)
    assert sample.media_type == "video"
    assert sorted(sample.frames) == [index + 1 for index in INDICES]
    found = {
        (number - 1, detection.index): rendered(detection)
        for number, frame in sample.frames.items()
        for detection in frame["refervos"].detections
    }
    expected = {key: mask for key, mask in masks_of(video).items() if mask.any()}
    assert set(found) == set(expected)
    for key, mask in expected.items():
        assert np.array_equal(found[key], mask), key


def test_every_box_has_its_pixels_in_frames_of_any_size(adapter: Any) -> None:
    from eta.core.geometry import BoundingBox, RelativePoint

    without_shift = 0
    for width in (1, 3, 53, 480, 853, 1279, 1920):
        for left in range(0, width, max(1, width // 150)):
            for right in {left + 1, (left + width + 1) // 2, width} - {left}:
                x, _, w, _ = adapter.relative_box(Box(left, 0, right, 1), (1, width))
                box = BoundingBox(RelativePoint(x, 0.0), RelativePoint(x + w, 1.0))
                found, _, size, _ = box.coords_in(frame_size=(width, 1))
                assert (found, found + size) == (left, right)
                without_shift += int(width * (left / width)) != left
    assert without_shift  # else the shift would not be needed


def test_labels_instances_and_presence(adapter: Any) -> None:
    sample = adapter.to_sample(VIDEO, difficult_video(), field="masks")
    detections = [d for frame in sample.frames.values() for d in frame["masks"].detections]
    assert {(d.index, d.label) for d in detections} == set(EXPRESSIONS.items())
    assert [d.confidence for d in detections] == pytest.approx([0.9] * len(detections))
    instances = {(d.index, d.instance.id) for d in detections}
    assert len(instances) == len({instance for _, instance in instances}) == 3


def test_intervals_of_visibility(adapter: Any) -> None:
    sample = adapter.to_sample(VIDEO, difficult_video())
    found = {(d.label, *d.support) for d in sample["refervos"].detections}
    # Frame numbers 4, 5, 6, 8, 9, 10. The first track is not visible in 8; 7 was dropped.
    assert found == {
        (EXPRESSIONS[4], 4, 6),
        (EXPRESSIONS[4], 9, 10),
        (EXPRESSIONS[7], 6, 6),
        (EXPRESSIONS[7], 8, 8),
        (EXPRESSIONS[7], 10, 10),
        (EXPRESSIONS[9], 4, 6),
        (EXPRESSIONS[9], 8, 8),
    }


def test_a_sample_survives_its_json(adapter: Any) -> None:
    video = difficult_video()
    detections = adapter.to_detections(video[0][1])
    again = fiftyone.Detections.from_json(detections.to_json())
    for before, after in zip(detections.detections, again.detections, strict=True):
        assert np.array_equal(rendered(after), rendered(before))
        assert after.label == before.label


@pytest.fixture(scope="module")
def model() -> Any:
    return refervos.load("miniature", device="cpu")


def test_the_model_segments_what_a_reader_of_fiftyone_reads(adapter: Any, model: Any) -> None:
    from eta.core.video import OpenCVVideoReader
    from fiftyone.core.models import Model

    wrapped = adapter.SentenceModel(model, ["the red circle"], field="sentences")
    assert isinstance(wrapped, Model)
    assert wrapped.media_type == "video"
    sample = fiftyone.Sample(filepath=str(VIDEO), sentences=["the blue star"])
    with OpenCVVideoReader(str(VIDEO), frames="41-52") as reader:
        answer = wrapped.predict(reader, sample=sample)
    assert list(answer) == list(range(41, 53))
    with refervos.open_source(VIDEO, start=40, stop=52) as source:
        session = model.open(["the red circle", "the blue star"])
        expected = adapter.to_sample(VIDEO, segment_frames(source, session), field="masks")
    for number, detections in answer.items():
        wanted = expected.frames[number]["masks"].detections
        assert [d.label for d in detections.detections] == [d.label for d in wanted]
    # The two decoders may differ in the last bit of a colour.
    one, other = (d.detections[0].mask for d in (answer[41], expected.frames[41]["masks"]))
    assert one.shape == other.shape
    assert (one != other).mean() < 0.02


def test_sentences_come_from_the_samples_field(adapter: Any, model: Any) -> None:
    wrapped = adapter.SentenceModel(model, field="sentences")
    assert wrapped.needs_fields == {"sentences": "sentences"}
    without: list[Any] = [None, []]
    for value in without:
        with pytest.raises(PromptError, match=r"shapes\.mp4' has no sentences; give some in its field 'sentences'"):
            wrapped.predict([], sample=fiftyone.Sample(filepath=str(VIDEO), sentences=value))
    single = fiftyone.Sample(filepath=str(VIDEO), sentences="the red circle")
    assert wrapped._sentences_of(single) == ["the red circle"]
    with pytest.raises(PromptError, match="there is no sentence"):
        adapter.SentenceModel(model)
