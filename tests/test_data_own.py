"""Your own data as JSON lines, COCO exports and CVAT exports: what is read, and the errors."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import layouts_images as layouts
from data_sets import assert_as_written, read_everything, refusal
from layouts import change_json
from layouts_images import HEIGHT, WIDTH
from refervos.data import frames as frames_module
from refervos.data.files import Problems
from refervos.data.frames import VideoDecoder, VideoFileFrames
from refervos.data.layouts.coco_video import read_coco_video
from refervos.data.layouts.cvat import read_cvat
from refervos.data.layouts.json_lines import read_json_lines
from refervos.data.sample import Dataset
from refervos.data.xml_files import read_xml
from refervos.errors import DataError, MissingDependencyError
from video_files import number_of, write_video

DOCS = Path(__file__).parents[1] / "docs" / "data" / "own-data.md"

Reader = Callable[[Path, str, Problems], Dataset]


def refusal_of(read: Reader, root: Path, split: str) -> str:
    """Return the sentence with which reading a split and all its masks is refused."""
    return refusal(lambda: read_everything(read(root, split, Problems())))


# JSON lines.


def write_lines(root: Path, *records: Any) -> None:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (root / "expressions.jsonl").write_text("\n".join(lines) + "\n")


def read_lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "expressions.jsonl").read_text().splitlines()]


def test_every_form_of_a_line_is_read(tmp_path: Path) -> None:
    written = layouts.write_json_lines(tmp_path)
    dataset = read_json_lines(tmp_path, "all", Problems())
    assert dataset.name == "json-lines"
    assert_as_written(dataset, written)
    annotated = {sample.key: sample.ground_truth and list(sample.ground_truth.annotated) for sample in dataset.samples}
    assert annotated["shapes", "0"] == [0, 2, 4]
    assert annotated["shapes", "3"] == [0, 1, 2, 3, 4]
    assert annotated["street", "1"] == [0, 3]
    assert next(sample for sample in dataset.samples if sample.key == ("shapes", "3")).kind == "absent"


def test_the_file_itself_can_be_given(tmp_path: Path) -> None:
    written = layouts.write_json_lines(tmp_path)
    assert_as_written(read_json_lines(tmp_path / "expressions.jsonl", "all", Problems()), written)


def test_expression_ids_do_not_depend_on_the_split(tmp_path: Path) -> None:
    written = layouts.write_json_lines(tmp_path)
    dataset = read_json_lines(tmp_path, "val", Problems())
    assert_as_written(dataset, [one for one in written if one.split == "val"])
    assert [sample.key for sample in dataset.samples] == [("shapes", "1")]


def test_lines_of_other_splits_are_not_checked(tmp_path: Path) -> None:
    layouts.write_json_lines(tmp_path)
    write_lines(tmp_path, *read_lines(tmp_path), {"video": "gone.mp4", "expression": "x", "split": "test"})
    assert len(read_json_lines(tmp_path, "val", Problems())) == 1
    with pytest.raises(DataError, match=r"gone\.mp4"):
        read_json_lines(tmp_path, "test", Problems())


def test_a_byte_order_mark_and_empty_lines_are_ignored(tmp_path: Path) -> None:
    written = layouts.write_json_lines(tmp_path)
    file = tmp_path / "expressions.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n\n"))
    assert_as_written(read_json_lines(tmp_path, "all", Problems()), written)


def test_samples_about_one_video_share_the_video(tmp_path: Path) -> None:
    layouts.write_json_lines(tmp_path)
    dataset = read_json_lines(tmp_path, "all", Problems())
    assert [(video.id, len(samples)) for video, samples in dataset.videos()] == [
        ("shapes", 5),
        ("street", 2),
        ("photo", 2),
    ]
    assert len({id(sample.video) for sample in dataset.samples}) == 3


def test_a_list_of_masks_with_the_names_of_other_frames_is_refused(tmp_path: Path) -> None:
    clip = layouts.own_clip(3)
    names = layouts.write_frames(tmp_path / "v", clip)
    layouts.write_index_masks(tmp_path / "m", clip, names)
    files = [f"m/{index:05d}.png" for index in (0, 2, 1)]
    write_lines(tmp_path, {"video": "v", "expression": "x", "masks": files, "value": 1})
    sentence = refusal_of(read_json_lines, tmp_path, "all")
    assert "m/00002.png for frame 00001" in sentence
    write_lines(tmp_path, {"video": "v", "expression": "x", "masks": sorted(files), "value": 1})
    read_everything(read_json_lines(tmp_path, "all", Problems()))


def test_frame_names_need_not_be_numbers(tmp_path: Path) -> None:
    clip = layouts.own_clip(2)
    for index, name in enumerate(("before", "behind")):
        Image.fromarray(clip.frames[index]).save(tmp_path / f"{name}.png")
    (tmp_path / "clip").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "clip" / path.name)
    write_lines(
        tmp_path,
        {"video": "clip", "expression": "it", "masks": {"behind": layouts.compressed_rle(clip.masks[0, 1])}},
    )
    (sample,) = read_json_lines(tmp_path, "all", Problems()).samples
    assert sample.video.frames.names == ("before", "behind")
    assert sample.ground_truth is not None
    assert list(sample.ground_truth.annotated) == [1]
    assert np.array_equal(sample.ground_truth.mask(1), clip.masks[0, 1])


def test_videos_with_the_same_name_need_an_id(tmp_path: Path) -> None:
    clip = layouts.own_clip(1)
    for place in ("a", "b"):
        layouts.write_frames(tmp_path / place / "clip", clip)
    one, two = {"video": "a/clip", "expression": "x"}, {"video": "b/clip", "expression": "x"}
    write_lines(tmp_path, one, two)
    assert "video_id" in refusal_of(read_json_lines, tmp_path, "all")
    write_lines(tmp_path, one, {**two, "video_id": "other"})
    assert [sample.key for sample in read_json_lines(tmp_path, "all", Problems()).samples] == [
        ("clip", "0"),
        ("other", "0"),
    ]


SMALL = {"size": [9, 9], "counts": [81]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"video": "photo.png", "expression": "x",}', "line 1"),
        ('{"video": "photo.png", "expression": "x"', "line 1"),
        ('{"video": "photo.png", "expression": "x", "expression": "y"}', "twice"),
        ("[1]", "line 1"),
        ("[" * 100000, "line 1"),
        ({"expression": "x"}, "'video'"),
        ({"video": "photo.png"}, "'expression'"),
        ({"video": "photo.png", "expression": " "}, "empty"),
        ({"video": "photo.png", "expression": "x", "mask": "photo-mask.png"}, "'mask'"),
        ({"video": "photo.png", "expression": "x", "masks": 7}, "'masks'"),
        ({"video": "photo.png", "expression": "x", "masks": [SMALL]}, "9x9"),
        ({"video": "photo.png", "expression": "x", "masks": [{**SMALL, "counts": [80]}]}, "9x9"),
        ({"video": "photo.png", "expression": "x", "masks": []}, "no frame"),
        ({"video": "photo.png", "expression": "x", "masks": {}}, "no frame"),
        ({"video": "clips/shapes", "expression": "x", "masks": "masks/shapes"}, "not binary"),
        ({"video": "clips/shapes", "expression": "x", "masks": "masks/shapes", "void": 3}, "found 0, 1, 2; "),
        ({"video": "clips/shapes", "expression": "x", "masks": "masks/shapes", "value": True}, "'value'"),
        ({"video": "clips/shapes", "expression": "x", "masks": "masks/shapes", "void": 0}, "'void'"),
        ({"video": "clips/shapes", "expression": "x", "masks": "masks/shapes", "void": 1, "value": [2, 1]}, "both"),
        ({"video": "photo.png", "expression": "x", "masks": [7]}, "PNG"),
        ({"video": "photo.png", "expression": "x", "masks": {"00007": None}}, "00007"),
        ({"video": "photo.png", "expression": "x", "masks": {"0": None}}, "'0'"),
        ({"video": "photo.png", "expression": "x", "masks": "gone.png"}, "gone.png, the mask of frame photo in "),
        ({"video": "photo.png", "expression": "x", "masks": "street.mp4"}, "street.mp4"),
        ({"video": "photo.png", "expression": "x", "masks": "photo.png"}, "photo.png"),
        ({"video": "photo.png", "expression": "x", "masks": "small.png"}, "small.png is 9x9"),
        ({"video": "photo.png", "expression": "x", "masks": "photo-mask.png", "value": 0}, "'value'"),
        ({"video": "photo.png", "expression": "x", "masks": "photo-mask.png", "no_target": True}, "'no_target'"),
        ({"video": "photo.png", "expression": "x", "expression_id": "a/b"}, "'expression_id'"),
        ({"video": "photo.png", "expression": "x", "video_id": ".."}, "'video_id'"),
        ({"video": "photo.png", "expression": "x", "split": 1}, "'split'"),
        ({"video": "gone", "expression": "x"}, "gone, the video of "),
        ({"video": "masks", "expression": "x"}, "masks contains no images"),
        ({"video": "street.mp4", "expression": "x", "masks": [None]}, "5 frames"),
        ({"video": "street.mp4", "expression": "x", "masks": {"5": None}}, "'5'"),
        ({"video": "street.mp4", "expression": "x", "masks": {"1": None, "00001": None}}, "twice"),
        ({"video": "broken.mp4", "expression": "x"}, "broken.mp4"),
        ({"video": "clips/shapes", "expression": "x", "masks": "masks/shapes", "value": [1, 256]}, "'value'"),
    ],
)
def test_an_invalid_line_is_refused_with_the_reason(tmp_path: Path, line: Any, reason: str) -> None:
    layouts.write_json_lines(tmp_path)
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "street.mp4").read_bytes()[:2000])
    write_lines(tmp_path, line)
    sentence = refusal_of(read_json_lines, tmp_path, "all")
    assert reason in sentence
    assert str(tmp_path) in sentence


def test_a_duplicate_expression_id_is_refused(tmp_path: Path) -> None:
    layouts.write_json_lines(tmp_path)
    line = {"video": "photo.png", "expression": "x", "expression_id": 4}
    write_lines(tmp_path, line, {**line, "expression_id": "4"})
    sentence = refusal_of(read_json_lines, tmp_path, "all")
    assert "expressions.jsonl, line 2" in sentence
    assert "'4'" in sentence


@pytest.mark.parametrize("name", ["clips/shapes/00003.jpg", "masks/shapes/00002.png", "photo.png", "photo-mask.png"])
def test_the_error_for_a_damaged_image_names_its_file(tmp_path: Path, name: str) -> None:
    layouts.write_json_lines(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in refusal_of(read_json_lines, tmp_path, "all")


def test_a_mask_without_a_frame_is_refused(tmp_path: Path) -> None:
    layouts.write_json_lines(tmp_path)
    (tmp_path / "clips" / "shapes" / "00002.jpg").unlink()
    assert "'00002'" in refusal_of(read_json_lines, tmp_path, "all")


def test_an_unknown_split_is_refused_with_a_list_of_the_splits(tmp_path: Path) -> None:
    layouts.write_json_lines(tmp_path)
    with pytest.raises(DataError, match=r"expressions\.jsonl.*all, train, val"):
        read_json_lines(tmp_path, "test", Problems())
    with pytest.raises(DataError, match=r"expressions\.jsonl is missing"):
        read_json_lines(tmp_path / "clips", "all", Problems())


def test_collected_problems_do_not_affect_other_lines(tmp_path: Path) -> None:
    layouts.write_json_lines(tmp_path)
    write_lines(tmp_path, "{", *read_lines(tmp_path), {"video": "gone", "expression": "x"})
    problems = Problems(keep_going=True)
    assert len(read_json_lines(tmp_path, "all", problems)) == 9
    assert len(problems.found) == 2
    assert "line 1 " in problems.found[0]
    assert "gone" in problems.found[1]


# Video files.


def read_numbers(frames: VideoFileFrames, indices: Sequence[int]) -> list[int]:
    return [number_of(frames.read(index)) for index in indices]


def test_frames_of_a_video_file_are_read_in_any_order(tmp_path: Path) -> None:
    frames = VideoFileFrames(write_video(tmp_path / "a.mp4", 9), VideoDecoder())
    assert frames.names == tuple(f"{index:05d}" for index in range(9))
    assert frames.size == (48, 64)
    order = [4, 4, 2, 8, 0, 1, 7, 3]
    assert read_numbers(frames, order) == order
    with pytest.raises(DataError, match=r"a\.mp4 .*9"):
        frames.read(9)
    assert read_numbers(frames, [8]) == [8]


def test_reading_in_order_opens_a_video_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    ordinary = frames_module.open_source

    def counting(path: Any, **options: Any) -> Any:
        opened.append(path)
        return ordinary(path, **options)

    monkeypatch.setattr(frames_module, "open_source", counting)
    frames = VideoFileFrames(write_video(tmp_path / "a.mp4", 9), VideoDecoder())
    assert read_numbers(frames, [0, 0, 1, 2]) == [0, 0, 1, 2]
    assert len(opened) == 1
    assert len(frames.names) == len(frames.names) == 9
    assert frames.size == frames.size == (48, 64)
    assert len(opened) == 3
    assert read_numbers(frames, [5, 6, 6, 8]) == [5, 6, 6, 8]  # continues without reopening
    assert len(opened) == 3


def test_only_one_video_file_is_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[Any] = []
    ordinary = frames_module.open_source

    def remembering(path: Any, **options: Any) -> Any:
        sources.append(ordinary(path, **options))
        return sources[-1]

    monkeypatch.setattr(frames_module, "open_source", remembering)
    decoder = VideoDecoder()
    videos = [VideoFileFrames(write_video(tmp_path / f"{name}.mp4", 3), decoder) for name in "abc"]
    for video in videos:
        video.read(1)
    assert [next(iter(source), None) is None for source in sources] == [True, True, False]


FORKED = """
import os, sys
from pathlib import Path
from refervos.data.frames import VideoDecoder, VideoFileFrames

frames = VideoFileFrames(Path(sys.argv[1]), VideoDecoder())
frames.read(1)
child = os.fork()
order = [2, 59, 0] if child else [47, 2, 59]
right = all(abs(float(frames.read(index)[20:28, 28:36].mean()) - 60 - 12 * (index % 12)) < 6 for index in order)
if child:
    right = right and os.waitpid(child, 0)[1] == 0
os._exit(0 if right else 1)
"""


def test_a_forked_process_and_its_parent_read_the_same_video_file_correctly(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 60, gop=5)
    subprocess.run([sys.executable, "-c", FORKED, str(path)], check=True, timeout=60)


def test_the_error_for_a_damaged_video_file_names_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 9)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(DataError, match=r"a\.avi"):
        _ = VideoFileFrames(path, VideoDecoder()).names


# COCO-video exports.


@pytest.mark.parametrize("source", ["listed", "annotations", "category"])
def test_expressions_of_a_coco_video_export_come_from_any_source(tmp_path: Path, source: str) -> None:
    written = layouts.write_coco_video(tmp_path, source)
    dataset = read_coco_video(tmp_path, "train", Problems())
    assert dataset.name == "coco-video"
    assert_as_written(dataset, written)
    assert all(sample.video.size == layouts.SIZE for sample in dataset.samples)


def test_a_coco_video_file_can_be_given_or_named_like_the_split(tmp_path: Path) -> None:
    written = layouts.write_coco_video(tmp_path)
    file = tmp_path / "train" / "instances.json"
    assert_as_written(read_coco_video(file, "all", Problems()), written)
    file.rename(tmp_path / "train.json")
    assert_as_written(read_coco_video(tmp_path, "train", Problems()), written)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["annotations"][0]["segmentations"].pop(), "4 segmentations"),
        (lambda c: c["annotations"][0]["segmentations"].__setitem__(2, SMALL), "9x9"),
        (lambda c: c["annotations"][0]["segmentations"].__setitem__(2, [[1, 2, "x"]]), "polygon"),
        (lambda c: c["annotations"][0]["segmentations"].__setitem__(2, [[0, 0, 9, 0, 9, 1e9]]), "polygon"),
        (lambda c: c["annotations"][0]["segmentations"].__setitem__(2, 7), "run-length"),
        (lambda c: c["annotations"][1].update(id=1), "annotation 1 twice"),
        (lambda c: c["annotations"][1].update(video_id=8), "video 8"),
        (lambda c: c["expressions"][1].update(id="a"), "expression a twice"),
        (lambda c: c["expressions"][1].update(annotation_ids=[9]), "annotation 9"),
        (lambda c: c["expressions"][1].pop("expression"), "'expression'"),
        (lambda c: c["videos"].extend(c["videos"]), "video 7 twice"),
        (lambda c: c["videos"][0].update(file_names=[]), "'file_names'"),
        (lambda c: c["videos"][0].update(width=10**9), "1000000000x48"),
        (lambda c: c["videos"][0]["file_names"].__setitem__(1, "x/00000.jpg"), "stem"),
        (lambda c: c.pop("videos"), "'videos'"),
        (lambda c: c.update(annotations={}), "'annotations'"),
    ],
)
def test_an_invalid_coco_video_export_is_refused_with_the_reason(
    tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    layouts.write_coco_video(tmp_path)
    file = tmp_path / "train" / "instances.json"
    change_json(file, change)
    sentence = refusal_of(read_coco_video, tmp_path, "train")
    assert reason in sentence
    assert str(file) in sentence


def test_an_object_without_expression_or_category_is_refused(tmp_path: Path) -> None:
    layouts.write_coco_video(tmp_path, "category")
    change_json(tmp_path / "train" / "instances.json", lambda content: content["categories"].pop())
    assert "annotation 2" in refusal_of(read_coco_video, tmp_path, "train")


def test_a_missing_or_damaged_frame_of_a_coco_video_is_refused(tmp_path: Path) -> None:
    layouts.write_coco_video(tmp_path)
    path = tmp_path / "train" / "JPEGImages" / "ab12" / "00003.jpg"
    path.write_bytes(b"?")
    assert str(path) in refusal_of(read_coco_video, tmp_path, "train")
    path.unlink()
    assert f"{path} is missing." == refusal_of(read_coco_video, tmp_path, "train")


def test_an_incomplete_video_is_reported_once_and_left_out(tmp_path: Path) -> None:
    written = layouts.write_coco_video(tmp_path)

    def copy_video(content: Any) -> None:
        other = {**content["videos"][0], "id": 8, "file_names": [f"ab12/{index}.jpg" for index in range(5)]}
        content["videos"].insert(0, other)
        content["annotations"].append({**content["annotations"][0], "id": 9, "video_id": 8})
        content["expressions"].append({**content["expressions"][0], "video_id": 8, "annotation_ids": [9]})

    change_json(tmp_path / "train" / "instances.json", copy_video)
    problems = Problems(keep_going=True)
    (tmp_path / "train" / "JPEGImages" / "ab12" / "0.jpg").touch()
    assert_as_written(read_coco_video(tmp_path, "train", problems), written)
    assert problems.found == [f"{tmp_path / 'train' / 'JPEGImages' / 'ab12' / '1.jpg'} is missing."]


def test_a_missing_split_of_a_coco_video_export_is_refused(tmp_path: Path) -> None:
    layouts.write_coco_video(tmp_path)
    assert "val.json" in refusal_of(read_coco_video, tmp_path, "val")
    assert "'all'" in refusal_of(read_coco_video, tmp_path / "train" / "instances.json", "train")


# CVAT exports.


@pytest.mark.parametrize("form", [{}, {"brush": True}, {"expressions": False}, {"video": True}])
def test_polygons_and_brush_masks_of_cvat_are_read(tmp_path: Path, form: dict[str, bool]) -> None:
    written = layouts.write_cvat(tmp_path / "shapes", **form)
    dataset = read_cvat(tmp_path / "shapes", "all", Problems())
    assert dataset.name == "cvat"
    assert_as_written(dataset, written)


def test_tracks_annotate_every_frame_and_brush_masks_only_the_drawn_frames(tmp_path: Path) -> None:
    layouts.write_cvat(tmp_path / "tracks")
    layouts.write_cvat(tmp_path / "masks", brush=True)
    layouts.write_cvat(tmp_path / "video", video=True)
    annotated = {
        sample.key: list(sample.ground_truth.annotated)
        for sample in read_cvat(tmp_path, "all", Problems()).samples
        if sample.ground_truth is not None
    }
    assert annotated == {
        ("masks", "0"): [0, 2],
        ("masks", "1"): [0, 2],
        ("tracks", "0"): [0, 1, 2, 3],
        ("tracks", "1"): [0, 1, 2, 3],
        ("video", "0"): [1, 3, 5, 7],  # the task has every second frame, starting with the second
        ("video", "1"): [1, 3, 5, 7],
    }


def test_the_target_is_the_union_of_the_tracks_with_one_expression(tmp_path: Path) -> None:
    written = layouts.write_cvat(tmp_path / "shapes")
    file = tmp_path / "shapes" / "annotations.xml"
    file.write_text(file.read_text().replace("the circle that moves", "a shape").replace("the square", "a shape"))
    (sample,) = read_cvat(tmp_path, "all", Problems()).samples
    assert sample.object_ids == ("0", "1")
    assert sample.ground_truth is not None
    assert written[0].masks is not None
    assert written[1].masks is not None
    for index in range(4):
        assert np.array_equal(sample.ground_truth.mask(index), written[0].masks[index] | written[1].masks[index])


def test_tracks_without_an_expression_are_ignored_when_others_have_one(tmp_path: Path) -> None:
    written = layouts.write_cvat(tmp_path / "shapes")
    file = tmp_path / "shapes" / "annotations.xml"
    file.write_text(file.read_text().replace("the circle that moves", ""))
    (sample,) = read_cvat(tmp_path, "all", Problems()).samples
    assert sample.expression == written[1].text


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (r"<polygon ", '<box xtl="1" ytl="1" xbr="9" ybr="9" ', "box, which is not a mask"),
        (r'track id="1"', 'track id="0"', "twice"),
        (r'track id="1"', "track", "'id'"),
        (r'frame="1" ', 'frame="0" ', "frame 0 twice"),
        (r'frame="1" ', 'frame="44" ', "frame 44"),
        (r'frame="1" ', 'frame="x" ', "'x'"),
        (r'points="[^"]*"', 'points="1,2;3"', "coordinates"),
        (r'points="[^"]*"', 'points="1;2;x,y"', "points"),
        (r'points="[^"]*"', 'points="1,2;3,4"', "three points"),
        (r'points="[^"]*"', 'points="1,2;3,4;nan,1"', "coordinates"),
        (r"<start_frame>0", "<start_frame>-", "'-'"),
        (r"</annotations>", "", "not valid XML"),
        (r"<annotations>", "<annotations", "not valid XML"),
    ],
)
def test_an_invalid_cvat_export_is_refused_with_the_reason(tmp_path: Path, old: str, new: str, reason: str) -> None:
    layouts.write_cvat(tmp_path / "shapes")
    file = tmp_path / "shapes" / "annotations.xml"
    text = re.sub(old, new, file.read_text())
    assert text != file.read_text()
    file.write_text(text.replace("</polygon>", "</box>") if "<box" in text else text)
    sentence = refusal_of(read_cvat, tmp_path, "all")
    assert reason in sentence
    assert str(file) in sentence


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (r'width="\d+"', 'width="3"', "add up"),
        (r'left="\d+"', 'left="60"', "outside"),
        (r'rle="', 'rle="1, ', "add up"),
        (r'rle="', 'rle="-1, ', "'-1'"),
        (r"rle=", "rel=", "''"),
    ],
)
def test_an_invalid_brush_mask_is_refused_with_the_reason(tmp_path: Path, old: str, new: str, reason: str) -> None:
    layouts.write_cvat(tmp_path / "shapes", brush=True)
    file = tmp_path / "shapes" / "annotations.xml"
    file.write_text(re.sub(old, new, file.read_text()))
    sentence = refusal_of(read_cvat, tmp_path, "all")
    assert reason in sentence
    assert str(file) in sentence


def test_a_cvat_export_without_frames_or_annotations_is_refused(tmp_path: Path) -> None:
    layouts.write_cvat(tmp_path / "shapes")
    path = tmp_path / "shapes" / "images" / "frame_000002.png"
    path.write_bytes(b"?")
    assert str(path) in refusal_of(read_cvat, tmp_path, "all")
    shutil.rmtree(tmp_path / "shapes" / "images")
    assert f"{tmp_path / 'shapes'} must contain the frames" in refusal_of(read_cvat, tmp_path, "all")
    (tmp_path / "shapes" / "annotations.xml").unlink()
    assert "annotations.xml" in refusal_of(read_cvat, tmp_path, "all")
    assert "'val'" in refusal_of(read_cvat, tmp_path, "val")


def test_an_xml_file_with_a_document_type_is_refused(tmp_path: Path) -> None:
    layouts.write_cvat(tmp_path / "shapes")
    file = tmp_path / "shapes" / "annotations.xml"
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e0 "ha">{entities}]><annotations>&e9;</annotations>'
    file.write_text(bomb)
    assert str(file) in refusal_of(read_cvat, tmp_path, "all")
    for declared in ('a [<!ENTITY x SYSTEM "file:///etc/hostname">]', 'a SYSTEM "a.dtd"', "a"):
        file.write_text(f"<!DOCTYPE {declared}><annotations>&x;</annotations>")
        with pytest.raises(DataError, match=r"annotations\.xml was not read: it has a document type declaration"):
            read_xml(file)


def test_the_error_without_defusedxml_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_cvat(tmp_path)
    monkeypatch.setitem(sys.modules, "defusedxml.ElementTree", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[data\]'"):
        read_cvat(tmp_path, "all", Problems())


# All layouts.


LAYOUTS: list[tuple[Callable[[Path], Any], Reader, str, str]] = [
    (layouts.write_json_lines, read_json_lines, "all", "expressions.jsonl"),
    (layouts.write_json_lines, read_json_lines, "all", "street.mp4"),
    (layouts.write_json_lines, read_json_lines, "all", "masks/shapes/00000.png"),
    (layouts.write_coco_video, read_coco_video, "train", "train/instances.json"),
    (layouts.write_coco_video, read_coco_video, "train", "train/JPEGImages/ab12/00000.jpg"),
    (layouts.write_cvat, read_cvat, "all", "annotations.xml"),
    (lambda root: layouts.write_cvat(root, brush=True), read_cvat, "all", "annotations.xml"),
]


@pytest.mark.parametrize(
    ("write", "read", "split", "name"), LAYOUTS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_truncated_file_is_refused_at_every_length(
    tmp_path: Path, write: Callable[[Path], Any], read: Reader, split: str, name: str
) -> None:
    write(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for length in [0, 1, *np.random.default_rng(3).integers(2, len(whole) * 3 // 4, 20).tolist()]:
        path.write_bytes(whole[:length])
        if name.endswith(".jsonl") and whole[:length].endswith((b"\n", b"}")):
            continue  # fewer lines are a valid data set
        if length or not name.endswith(".jsonl"):
            assert path.name in refusal_of(read, tmp_path, split)


@pytest.mark.parametrize(
    ("write", "read", "split", "name"), LAYOUTS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_data_set_can_be_pickled(
    tmp_path: Path, write: Callable[[Path], Any], read: Reader, split: str, name: str
) -> None:
    written = write(tmp_path)
    dataset = read(tmp_path, split, Problems())
    read_everything(dataset)
    assert_as_written(pickle.loads(pickle.dumps(dataset)), written)


# The documentation page.


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language on the page."""
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Write the files that the examples on the page refer to."""
    clip = layouts.own_clip()
    names = layouts.write_frames(tmp_path / "clips" / "dog", clip)
    layouts.write_index_masks(tmp_path / "masks" / "dog", clip, names)
    write_video(tmp_path / "street.mp4", 5, width=WIDTH, height=HEIGHT, images=list(clip.frames))
    (tmp_path / "masks" / "street").mkdir()
    Image.fromarray(clip.masks[0, 3]).save(tmp_path / "masks" / "street" / "car-3.png")
    Image.fromarray(clip.frames[0]).save(tmp_path / "desk.jpg")
    Image.fromarray(clip.masks[1, 0]).save(tmp_path / "masks" / "mug.png")
    return tmp_path


def test_the_json_lines_in_the_documentation_are_read(example: Path) -> None:
    (lines,) = blocks("jsonl")
    (example / "expressions.jsonl").write_text(lines)
    dataset = read_json_lines(example, "all", Problems())
    read_everything(dataset)
    assert len(dataset) == len(lines.strip().splitlines())
    assert {sample.has_target for sample in dataset.samples} == {True, False, None}


def test_the_script_in_the_documentation_writes_readable_lines(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = blocks("python")
    (example / "write.py").write_text(script)
    monkeypatch.chdir(example)
    runpy.run_path("write.py")
    dataset = read_json_lines(example, "all", Problems())
    read_everything(dataset)
    assert len(dataset) == 2
    clip = layouts.own_clip()
    for sample, masks in zip(dataset.samples, clip.masks, strict=True):
        assert sample.ground_truth is not None
        assert np.array_equal([sample.ground_truth.mask(index) for index in sample.ground_truth.annotated], masks)


def test_the_coco_video_export_in_the_documentation_is_read(example: Path) -> None:
    (content,) = blocks("json")
    (example / "train.json").write_text(content)
    shutil.move(example / "clips", example / "images")
    dataset = read_coco_video(example, "train", Problems())
    read_everything(dataset)
    assert [(sample.key[1], sample.has_target) for sample in dataset.samples] == [
        ("1", True),
        ("2", True),
        ("3", False),
    ]


def test_the_cvat_export_in_the_documentation_is_read(example: Path) -> None:
    (content,) = blocks("xml")
    (example / "task").mkdir()
    (example / "task" / "annotations.xml").write_text(content)
    layouts.write_frames(example / "task" / "images", layouts.own_clip(2), "frame_{:06d}.png")
    dataset = read_cvat(example, "all", Problems())
    read_everything(dataset)
    assert [sample.expression for sample in dataset.samples] == ["the dog that leaves", "the other dog"]
    ground_truth = dataset.samples[1].ground_truth
    assert ground_truth is not None
    assert ground_truth.mask(1)[7:9, 5:8].tolist() == [[False, True, True], [True, True, False]]
