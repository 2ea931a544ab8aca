"""VidSTG and HC-STVG: boxes of an object in the frames of a moment."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layouts import change_json, drawn_videos
from layouts_conversations import RATE, always_visible, boxes_of, write_hcstvg, write_vidstg
from refervos.data.boxes import BoxGroundTruth, clip_box, sample_moment
from refervos.data.catalogue import open_dataset
from refervos.data.check import check_dataset
from refervos.data.sample import Sample
from refervos.errors import DataError

OPTIONS: dict[str, Any] = {"videos": 2, "frames": 8}


def boxes(sample: Sample) -> dict[int, tuple[float, ...]]:
    """Return the boxes of a sample by frame index."""
    assert isinstance(sample.ground_truth, BoxGroundTruth)
    return dict(sample.ground_truth.boxes)


# Scored frames


def test_one_frame_per_second_of_a_moment_is_scored() -> None:
    assert sample_moment(13, 45, 10.0, "x") == (13, 20, 30, 40)
    assert sample_moment(0, 90, 30.0, "x") == (0, 30, 60)
    assert sample_moment(5, 6, 30.0, "x") == (5,)


def test_a_long_moment_is_subsampled_to_40_frames() -> None:
    numbers = sample_moment(0, 100, 1.0, "x")
    assert numbers == tuple(position * 100 // 40 for position in range(40))


@pytest.mark.parametrize("moment", [(3, 3, 30.0), (-1, 4, 30.0), (0, 10**12, 30.0), (0, 4, 0.5), (0, 4, float("nan"))])
def test_a_moment_out_of_range_is_refused(moment: tuple[int, int, float]) -> None:
    with pytest.raises(DataError, match="annotation 7 goes from frame"):
        sample_moment(*moment, "annotation 7")


def test_boxes_are_clipped_to_the_frame() -> None:
    assert clip_box(-3, 4, 70, 60, (48, 64)) == (0, 4, 64, 48)
    assert clip_box(64, 0, 70, 10, (48, 64)) is None


# VidSTG


def test_vidstg_has_a_sample_for_each_expression_with_the_boxes_of_its_target(tmp_path: Path) -> None:
    dataset = open_dataset("vidstg", write_vidstg(tmp_path, **OPTIONS))
    assert [sample.kind for sample in dataset.samples[:3]] == ["interrogative", "interrogative", "declarative"]
    assert [sample.expression for sample in dataset.samples[:3]] == ["what is there?", "what moves?", "a shape moves."]
    assert [sample.expression_id for sample in dataset.samples] == ["0", "1", "2"] * 2
    for number, one in enumerate(drawn_videos("test", **OPTIONS)):
        samples = dataset.samples[3 * number : 3 * number + 3]
        target = always_visible(one)[0]
        frames = sample_moment(1, 8, RATE, "x")
        assert samples[0].video.id == f"{1000 + number}_1_8"
        assert list(samples[0].video.frames.names) == [f"{frame:05d}" for frame in frames]
        for sample, k in zip(samples, (0, target, target), strict=True):
            assert sample.video is samples[0].video
            expected = {index: boxes_of(one, k)[frame] for index, frame in enumerate(frames)}
            assert boxes(sample) == {index: tuple(box) for index, box in expected.items() if box is not None}
        for index, frame in enumerate(frames):
            difference = samples[0].video.frames.read(index).astype(int) - one.clip.frames[frame]
            assert np.abs(difference).mean() < 6


def test_the_mask_of_a_box_is_its_filled_area(tmp_path: Path) -> None:
    dataset = open_dataset("vidstg", write_vidstg(tmp_path, **OPTIONS))
    sample = dataset.samples[1]
    ground_truth = sample.ground_truth
    assert ground_truth is not None
    left, top, right, bottom = (int(side) for side in boxes(sample)[0])
    mask = ground_truth.mask(0)
    assert mask.sum() == (right - left) * (bottom - top)
    assert mask[top:bottom, left:right].all()
    assert ground_truth.void(0) is None


def test_alternative_folder_names_are_found(tmp_path: Path) -> None:
    write_vidstg(tmp_path, **OPTIONS)
    renamed = {"vidstg_annotations": "annotations", "vidor_annotations": "annotation", "video": "videos"}
    for name, other in renamed.items():
        (tmp_path / name).rename(tmp_path / other)
    assert len(open_dataset("vidstg", tmp_path)) == 6


def test_samples_with_boxes_can_be_pickled(tmp_path: Path) -> None:
    write_vidstg(tmp_path / "a", **OPTIONS)
    write_hcstvg(tmp_path / "b", **OPTIONS)
    for name, folder in (("vidstg", "a"), ("hc-stvg", "b")):
        sample = open_dataset(name, tmp_path / folder).samples[0]
        assert boxes(pickle.loads(pickle.dumps(sample))) == boxes(sample)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["temporal_gt"].update(end_fid=1), "a moment must have at least one frame"),
        (lambda one: one.update(fps="30"), "'fps' must be numbers"),
        (lambda one: one.update(vid="2000"), "has no file for video 2000"),
        (lambda one: one["captions"][0].update(target_id="0"), "'target_id' must be a whole number"),
        (lambda one: one.update(width=-4), "an image cannot be"),
    ],
)
def test_damage_in_vidstg_is_reported(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    write_vidstg(tmp_path, **OPTIONS)
    change_json(tmp_path / "vidstg_annotations/test_annotations.json", lambda content: change(content[0]))
    with pytest.raises(DataError, match=message):
        open_dataset("vidstg", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vidor: vidor.update(trajectories=vidor["trajectories"][:2]), "none for frame"),
        (lambda vidor: vidor.update(trajectories=[[] for _ in range(8)]), "no box of object"),
        (lambda vidor: vidor["trajectories"][3][0]["bbox"].update(xmin=None), "'bbox' must be numbers"),
    ],
)
def test_the_check_reports_missing_and_damaged_boxes(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    write_vidstg(tmp_path, **OPTIONS)
    change_json(tmp_path / "vidor_annotations/validation/0007/1000.json", change)
    found = check_dataset("vidstg", tmp_path)
    assert found.expressions == 6
    assert any(message in problem for problem in found.problems)


def test_missing_folders_and_videos_of_vidstg_are_reported(tmp_path: Path) -> None:
    write_vidstg(tmp_path, **OPTIONS)
    (tmp_path / "video/0007/1000.mp4").unlink()
    with pytest.raises(DataError, match=r"1000\.mp4 is missing"):
        open_dataset("vidstg", tmp_path)
    (tmp_path / "vidor_annotations").rename(tmp_path / "other")
    with pytest.raises(DataError, match="no folder 'vidor_annotations' or 'annotation'"):
        open_dataset("vidstg", tmp_path)


# HC-STVG


@pytest.mark.parametrize(("name", "version", "split"), [("hc-stvg", 2, "val"), ("hc-stvg1", 1, "test")])
def test_hcstvg_counts_frames_from_1(name: str, version: int, split: str, tmp_path: Path) -> None:
    dataset = open_dataset(name, write_hcstvg(tmp_path, split, version=version, **OPTIONS))
    declarative = [sample for sample in dataset.samples if sample.kind == "declarative"]
    frames = sample_moment(1, 20 * RATE - 1, RATE, "x")
    assert frames[:3] == (1, 3, 6)
    for number, (sample, one) in enumerate(zip(declarative, drawn_videos(split, **OPTIONS), strict=True)):
        assert sample.key == (f"{number}_clip", "d")
        assert sample.expression == "The person walks."
        assert list(sample.video.frames.names) == [f"{frame:05d}" for frame in frames]
        every = boxes_of(one, always_visible(one)[0])
        expected = {index: tuple(every[frame % 8] or ()) for index, frame in enumerate(frames)}
        assert boxes(sample) == expected
        difference = sample.video.frames.read(1).astype(int) - one.clip.frames[frames[1] % 8]
        assert np.abs(difference).mean() < 6


def test_optional_questions_about_clips_are_read(tmp_path: Path) -> None:
    dataset = open_dataset("hc-stvg", write_hcstvg(tmp_path, **OPTIONS))
    questions = [sample for sample in dataset.samples if sample.kind == "interrogative"]
    assert [(sample.key, sample.expression) for sample in questions] == [(("1_clip", "i"), "Who walks?")]
    assert check_dataset("hc-stvg", tmp_path).problems == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda clip: clip.update(st_frame=0), "goes from frame -1"),
        (lambda clip: clip.update(st_frame=4), "ends after the last frame"),
        (lambda clip: clip["bbox"].__setitem__(0, [1, 2, 3]), r"must be \[left, top, width, height\]"),
        (lambda clip: clip.update(bbox=[[0, 0, 0, 5]] * 3), "none of the boxes overlaps"),
        (lambda clip: clip.update(img_size=[48]), "'img_size' must be height and width"),
        (lambda clip: clip.pop("English"), "'caption' must be text"),
    ],
)
def test_damage_in_hcstvg_is_reported(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    write_hcstvg(tmp_path, **OPTIONS)
    change_json(tmp_path / "anno_v2/val_v2.json", lambda content: change(content["0_clip.mp4"]))
    with pytest.raises(DataError, match=message):
        open_dataset("hc-stvg", tmp_path)


def test_a_missing_clip_is_reported(tmp_path: Path) -> None:
    write_hcstvg(tmp_path, **OPTIONS)
    (tmp_path / "Video/0/1_clip.mkv").unlink()
    with pytest.raises(DataError, match="clip 1_clip is missing"):
        open_dataset("hc-stvg", tmp_path)
