"""Data besides the published archives: incomplete downloads, exports of annotation tools, other file formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import layouts
import layouts_images
from predicted import lines, means, perfect, write_masks
from refervos.data.catalogue import open_dataset
from refervos.data.check import check_dataset
from refervos.data.files import Problems
from refervos.data.sample import Sample
from refervos.errors import DataError, EvaluationError
from refervos.evaluation.datasets import Part
from refervos.evaluation.scoring import score

# Incomplete Ref-YouTube-VOS.


def test_ref_youtube_vos_is_read_without_meta_json(tmp_path: Path) -> None:
    layouts.write_ref_youtube_vos(tmp_path, "train")
    whole = open_dataset("ref-youtube-vos", tmp_path, "train")
    (tmp_path / "train" / "meta.json").unlink()
    part = open_dataset("ref-youtube-vos", tmp_path, "train")
    assert [(sample.key, sample.object_ids) for sample in part.samples] == [
        (sample.key, sample.object_ids) for sample in whole.samples
    ]
    for one, other in zip(part.samples, whole.samples, strict=True):
        assert one.ground_truth is not None
        assert other.ground_truth is not None
        for index in one.ground_truth.annotated:
            assert np.array_equal(one.ground_truth.mask(index), other.ground_truth.mask(index))
    file = tmp_path / "meta_expressions" / "train" / "meta_expressions.json"
    file.write_text(file.read_text().replace('"obj_id": "1"', '"obj_id": "first"'))
    assert any("'obj_id'" in problem for problem in check_dataset("ref-youtube-vos", tmp_path, "train").problems)


def test_without_the_list_of_test_the_present_videos_of_valid_are_read(tmp_path: Path) -> None:
    layouts.write_ref_youtube_vos(tmp_path, "valid")
    whole = open_dataset("ref-youtube-vos", tmp_path, "valid")
    (tmp_path / "meta_expressions" / "test" / "meta_expressions.json").unlink()
    part = open_dataset("ref-youtube-vos", tmp_path, "valid")
    assert [sample.key for sample in part.samples] == [sample.key for sample in whole.samples]
    checked = check_dataset("ref-youtube-vos", tmp_path, "valid")
    assert checked.problems == ()
    assert "2 of 4" in checked.splits[0].notes[0]


# Masks for Ref-DAVIS17 in the layout of published code.


def write_merged(folder: Path, samples: Sequence[Sample], predict: Callable[[Sample, int], np.ndarray]) -> Path:
    """Write ``anno_0/<video>/<frame>.png`` and so on, with object numbers as pixel values."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((str(sample.annotator), sample.video.id), []).append(sample)
    for (annotator, video), group in groups.items():
        for index, name in enumerate(group[0].video.frames.names):
            numbers = np.zeros((48, 64), np.uint8)
            for sample in reversed(group):
                numbers[predict(sample, index)] = int(sample.expression_id) // 4 + 1
            image = Image.fromarray(numbers)
            image.putpalette([value for number in range(256) for value in (number, 0, 255 - number)])
            path = folder / f"anno_{annotator}" / video / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return folder


def shifted(sample: Sample, index: int) -> np.ndarray:
    """Return the target mask, shifted to the right by the number of the annotator."""
    return np.roll(perfect(sample, index), int(str(sample.annotator)), axis=1)


@pytest.mark.parametrize("inner", ["", "valid"])
def test_merged_masks_score_like_the_same_masks_in_separate_files(tmp_path: Path, inner: str) -> None:
    layouts.write_ref_davis17(tmp_path / "data")
    part = Part("ref-davis17", tmp_path / "data")
    samples = list(part.open().samples())

    def apart(sample: Sample, index: int) -> np.ndarray:
        """Return the pixels of a sample that no earlier object covers."""
        mask = shifted(sample, index)
        for other in samples:
            beside = other.video is sample.video and other.annotator == sample.annotator
            if beside and int(other.expression_id) < int(sample.expression_id):
                mask = mask & ~shifted(other, index)
        return mask

    write_masks(tmp_path / "single", samples, apart)
    write_merged(tmp_path / "merged" / inner, samples, shifted)
    one, other = (score(tmp_path / name, part, show_progress=False) for name in ("single", "merged"))
    assert means(other) == means(one)
    assert lines(other) == lines(one)
    assert 20 < lines(other)["J&F, published (matched)"] < 100


def test_a_missing_merged_file_counts_as_missing_masks(tmp_path: Path) -> None:
    layouts.write_ref_davis17(tmp_path / "data", videos=1)
    part = Part("ref-davis17", tmp_path / "data")
    merged = write_merged(tmp_path / "merged", list(part.open().samples()), perfect)
    whole = score(merged, part, show_progress=False)
    assert whole.summary.notes() == ["8 expressions about 1 videos; 48 masks."]
    next((merged / "anno_2").rglob("00003.png")).unlink()
    assert "2 masks of 2 expressions are missing" in score(merged, part, show_progress=False).summary.notes()[-1]


def test_merged_masks_that_do_not_match_the_data_set_are_refused(tmp_path: Path) -> None:
    layouts.write_ref_davis17(tmp_path / "data", videos=1)
    part = Part("ref-davis17", tmp_path / "data")
    merged = write_merged(tmp_path / "merged", list(part.open().samples()), perfect)
    file = next((merged / "anno_1").rglob("00001.png"))
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(file)
    with pytest.raises(EvaluationError, match="holds the number 9, but there are only 2 expressions of annotator 1"):
        score(merged, part, show_progress=False)
    layouts.write_mevis(tmp_path / "mevis")
    with pytest.raises(EvaluationError, match="the layout of Ref-DAVIS17; masks for other data sets"):
        score(merged, Part("mevis", tmp_path / "mevis"), show_progress=False)


# COCO exports of images that are video frames.

HEIGHT, WIDTH = layouts_images.SIZE


def annotation(id: int, image: int, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image, "category_id": 1, "segmentation": layouts_images.row_polygons(mask), **more}


def write_images(
    root: Path, names: Sequence[str], file: str, images: str, more: Callable[[int, int], dict[str, Any]] | None = None
) -> None:
    """Write an export whose images are the frames of a clip, with both of its objects.

    Args:
        root: Folder of the data set.
        names: Names of the images in the export, in the order of the clip.
        file: Path of the export below the root.
        images: Folder below the root that the names are relative to.
        more: Returns additional fields of an annotation, given the indices of its object and its frame.
    """
    clip = layouts_images.own_clip(len(names))
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "shape"}]}
    for index in np.random.default_rng(1).permutation(len(names)).tolist():  # exports have no fixed order
        path = root / images / names[index]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(clip.frames[index]).save(path, quality=95)
        content["images"].append(
            {"id": 100 + index, "file_name": names[index], "width": WIDTH, "height": HEIGHT, "license": 1}
        )
        for obj, masks in enumerate(clip.masks):
            if masks[index].any():
                fields = more(obj, index) if more else {}
                content["annotations"].append(
                    annotation(len(content["annotations"]), 100 + index, masks[index], **fields)
                )
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


EXPORTS: dict[str, tuple[list[str], str, str, str]] = {
    "Roboflow": (
        [f"dog_mp4-{number}_jpg.rf.{number:04d}aXcJ.jpg" for number in (2, 9, 10, 100)],
        "train/_annotations.coco.json",
        "train",
        "train",
    ),
    "CVAT": (
        [f"frame_{number:06d}.PNG" for number in (0, 1, 3, 4)],
        "annotations/instances_default.json",
        "images/default",
        "default",
    ),
    "CVAT without a folder of its own": (
        [f"frame_{number:06d}.PNG" for number in (0, 1, 3, 4)],
        "annotations/instances_default.json",
        "images",
        "default",
    ),
    "LabelMe": ([f"JPEGImages/{number}.jpg" for number in (7, 8, 9, 10)], "annotations.json", "", "all"),
    "plain": ([f"{number}.jpg" for number in (7, 8, 9, 10)], "train.json", "images", "train"),
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_numbered_images_of_an_export_form_a_video_in_the_order_of_their_numbers(tmp_path: Path, tool: str) -> None:
    names, file, images, split = EXPORTS[tool]
    write_images(tmp_path / "set", names, file, images)
    (sample,) = open_dataset("coco-video", tmp_path / "set", split).samples
    assert sample.expression == "shape"
    assert list(sample.video.frames.names) == [Path(name).stem for name in names]
    clip = layouts_images.own_clip(len(names))
    assert sample.ground_truth is not None
    assert list(sample.ground_truth.annotated) == list(range(len(names)))
    for index in range(len(names)):
        assert np.array_equal(sample.ground_truth.mask(index), clip.masks[:, index].any(axis=0))
        assert np.abs(sample.video.frames.read(index).astype(int) - clip.frames[index]).mean() < 10
    checked = check_dataset("coco-video", tmp_path / "set")
    assert checked.problems == ()
    assert [one.split for one in checked.splits] == [split]


def test_images_of_several_videos_in_one_folder_are_separated(tmp_path: Path) -> None:
    names = ["cat_1.jpg", "cat_2.jpg", "dog_mp4-1_jpg.rf.a.jpg", "dog_mp4-2_jpg.rf.b.jpg", "deep/1.jpg", "still.jpg"]
    write_images(tmp_path / "set", names, "train.json", "images")
    dataset = open_dataset("coco-video", tmp_path / "set", "train")
    assert {video.id: len(video) for video, _ in dataset.videos()} == {"cat": 2, "dog_mp4": 2, "deep": 1, "still": 1}


def test_a_video_id_in_the_images_takes_precedence(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], "train.json", "images")

    def change(content: Any) -> None:
        content["videos"] = [{"id": 1, "name": "clips/one.mp4"}, {"id": 2, "name": "two"}]
        for image in content["images"]:
            image.update(video_id=2 if image["file_name"] == "c.jpg" else 1)
            image.update(frame_id={"a.jpg": 5, "b.jpg": 4, "c.jpg": 4}[image["file_name"]])

    layouts.change_json(tmp_path / "train.json", change)
    dataset = open_dataset("coco-video", tmp_path, "train")
    assert {video.id: list(video.frames.names) for video, _ in dataset.videos()} == {"one": ["b", "a"], "two": ["c"]}


def test_expressions_and_tracks_of_annotations_are_read(tmp_path: Path) -> None:
    def fields(obj: int, index: int) -> dict[str, Any]:
        text = "the square" if obj else "the circle on the left" if index < 2 else "the circle on the right"
        return {"attributes": {"expression": text, "track_id": obj, "occluded": False}}

    write_images(tmp_path, [f"{n}.jpg" for n in range(4)], "train.json", "images", fields)
    samples = {sample.expression: sample for sample in open_dataset("coco-video", tmp_path, "train").samples}
    annotated = {text: list(sample.ground_truth.annotated) for text, sample in samples.items() if sample.ground_truth}
    assert annotated == {
        "the circle on the left": [0, 1],  # not annotated where the track has another expression
        "the circle on the right": [2, 3],
        "the square": [0, 1, 2, 3],
    }
    ground_truth = samples["the square"].ground_truth
    assert ground_truth is not None
    assert [bool(ground_truth.mask(index).any()) for index in range(4)] == [True, True, True, False]


def test_images_without_annotations_do_not_count_as_annotated(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{n}.jpg" for n in range(4)], "train.json", "images")

    def change(content: Any) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 101]

    layouts.change_json(tmp_path / "train.json", change)
    (sample,) = open_dataset("coco-video", tmp_path, "train").samples
    assert sample.ground_truth is not None
    assert list(sample.ground_truth.annotated) == [0, 2, 3]
    assert len(sample.video) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["annotations"][0].update(segmentation=[]), "a box is not a mask"),
        (lambda c: c["annotations"][0].update(image_id=7), "image 7, which is missing"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "twice"),
        (lambda c: c["images"].append(c["images"][0]), "twice"),
        (lambda c: c["images"][0].update(file_name="../../1.jpg"), "is outside"),
        (lambda c: c["images"][0].update(file_name="77.jpg"), "77.jpg is missing"),
        (lambda c: c["images"][0].update(width=8000), "8000x48"),
        (lambda c: c["images"][0].update(file_name=f"0{c['images'][1]['file_name']}"), "same frame of video"),
        (lambda c: c.update(expressions=[]), "put them into the annotations"),
        (lambda c: c.update(images=[]), "neither 'videos'"),
        (lambda c: [one.update(track_id=1) for one in c["annotations"]], "track 1 is in image"),
    ],
)
def test_an_invalid_export_of_images_is_refused_with_the_reason(
    tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    root = tmp_path / "set"
    write_images(root, [f"{n}.jpg" for n in range(1, 5)], "train.json", "images")
    content = json.loads((root / "train.json").read_text())
    change(content)
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as raised:
        open_dataset("coco-video", root, "train")
    assert reason in str(raised.value)
    assert str(raised.value) in check_dataset("coco-video", root, "train").problems


def test_a_missing_split_is_refused_with_a_list_of_the_present_splits(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.jpg"], "valid/_annotations.coco.json", "valid")
    with pytest.raises(DataError, match="present are valid"):
        open_dataset("coco-video", tmp_path, "all")


# Image formats.


@pytest.mark.parametrize("suffix", ["jpe", "jfif", "JFIF", "gif", "avif", "webp", "bmp", "tif"])
def test_frames_may_be_images_of_every_supported_format(tmp_path: Path, suffix: str) -> None:
    clip = layouts_images.own_clip(2)
    (tmp_path / "v").mkdir()
    for index, frame in enumerate(clip.frames):
        kind = {"jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF"}.get(suffix.lower(), suffix.upper())
        Image.fromarray(frame).save(tmp_path / "v" / f"{index}.{suffix}", format=kind)
    (tmp_path / "expressions.jsonl").write_text('{"video": "v", "expression": "x", "masks": [null, null]}')
    (sample,) = open_dataset("json-lines", tmp_path).samples
    assert list(sample.video.frames.names) == ["0", "1"]
    assert np.abs(sample.video.frames.read(1).astype(int) - clip.frames[1]).mean() < 12
    assert check_dataset("json-lines", tmp_path).problems == ()


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif"])
def test_an_image_file_with_several_images_is_a_video(tmp_path: Path, suffix: str) -> None:
    clip = layouts_images.own_clip(3)
    first, *others = [Image.fromarray(frame) for frame in clip.frames]
    first.save(tmp_path / f"v.{suffix}", save_all=True, append_images=others)
    line = {
        "video": f"v.{suffix}",
        "expression": "x",
        "masks": {"2": layouts_images.uncompressed_rle(clip.masks[0, 2])},
    }
    (tmp_path / "expressions.jsonl").write_text(json.dumps(line))
    (sample,) = open_dataset("json-lines", tmp_path).samples
    assert len(sample.video) == 3
    assert sample.ground_truth is not None
    assert list(sample.ground_truth.annotated) == [2]
    assert np.abs(sample.video.frames.read(2).astype(int) - clip.frames[2]).mean() < 12


def test_images_with_equal_numbers_are_ordered_by_name(tmp_path: Path) -> None:
    for name in ("1.jpg", "01.jpg", "001.jpg"):
        layouts_images.write_frames(tmp_path / "v", layouts_images.own_clip(1), name)
    (tmp_path / "expressions.jsonl").write_text('{"video": "v", "expression": "x"}')
    (sample,) = open_dataset("json-lines", tmp_path, problems=Problems()).samples
    assert list(sample.video.frames.names) == ["001", "01", "1"]
