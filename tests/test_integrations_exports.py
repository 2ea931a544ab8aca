"""Exports to the formats of other tools: masks come back as they were, pixel by pixel, at their frame numbers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from pycocotools.coco import COCO

from difficult_masks import EXPRESSIONS, HEIGHT, INDICES, TIMES, WIDTH, difficult_video, masks_of, visible_masks
from refervos.cli import entry as cli
from refervos.cli.segment import Output, open_sinks
from refervos.data.files import Problems
from refervos.data.layouts.coco_video import read_coco_video
from refervos.data.layouts.cvat import read_cvat
from refervos.data.layouts.ref_youtube_vos import read_ref_youtube_vos
from refervos.errors import OutputError, VideoError
from refervos.integrations.coco import CocoSink
from refervos.integrations.cvat.video import CvatSink, label_of
from refervos.integrations.exports import ExportSink, ObjectLines
from refervos.integrations.labelme import LabelmeSink
from refervos.integrations.outlines import outlines_around_pixels, outlines_through_pixels
from refervos.integrations.youtube_vis import YoutubeVisSink
from refervos.integrations.youtube_vos import YoutubeVosSink
from refervos.segmentation import Segmentation
from refervos.video import Frame, SourceInfo, open_source
from video_files import box_masks, numbered_frame, segmentation

Mask = npt.NDArray[np.bool_]
Pairs = list[tuple[Frame, Segmentation]]

SOURCE = SourceInfo("clips/東京 dog.mp4", frame_count=20)
EXAMPLE = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"
KINDS: list[type[ExportSink]] = [YoutubeVisSink, YoutubeVosSink, CocoSink, CvatSink, LabelmeSink]


def export(
    kind: Callable[..., ExportSink], folder: Path, video: Pairs, source: SourceInfo = SOURCE, **options: Any
) -> Path:
    """Write a video as an export and return its folder."""
    with kind(folder, source, **options) as sink:
        for frame, result in video:
            sink.write(frame, result)
    assert sink.close() == [folder]
    assert not [path for path in folder.parent.rglob("*") if path.suffix == ".part"]
    return folder


def assert_equal(found: dict[tuple[int, int], Mask], expected: dict[tuple[int, int], Mask]) -> None:
    assert sorted(found) == sorted(expected)
    for key, mask in expected.items():
        np.testing.assert_array_equal(found[key], mask, err_msg=str(key))


def assert_samples_equal(samples: Iterable[Any], video: Pairs, positions: Iterable[int]) -> None:
    """Compare samples of a data layout with a video, at positions among its frames."""
    by_text = {sample.expression: sample for sample in samples}
    assert set(by_text) == set(EXPRESSIONS.values())
    masks = masks_of(video)
    for track, expression in EXPRESSIONS.items():
        for position in positions:
            expected = masks.get((INDICES[position], track), np.zeros((HEIGHT, WIDTH), bool))
            found = by_text[expression].ground_truth.mask(position)
            np.testing.assert_array_equal(found, expected, err_msg=f"{expression}, {position}")


# YouTube-VIS


@pytest.mark.parametrize("overlapping", [False, True])
def test_pycocotools_reads_the_masks_of_youtube_vis(tmp_path: Path, overlapping: bool) -> None:
    video = difficult_video(overlapping=overlapping)
    content = json.loads((export(YoutubeVisSink, tmp_path / "o", video) / "annotations.json").read_text("utf-8"))
    (listed,) = content["videos"]
    assert (listed["width"], listed["height"], listed["length"]) == (WIDTH, HEIGHT, len(INDICES))
    assert listed["frame_indices"] == list(INDICES)
    assert listed["times"] == list(TIMES)
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {}
    for annotation in content["annotations"]:
        assert names[annotation["category_id"]] == EXPRESSIONS[annotation["track_id"]]
        for key in ("segmentations", "areas", "bboxes", "presences"):
            assert len(annotation[key]) == len(INDICES)
        for position, rle in enumerate(annotation["segmentations"]):
            if rle is not None:
                mask = coco.decode(rle).astype(bool)
                found[INDICES[position], annotation["track_id"]] = mask
                assert annotation["areas"][position] == mask.sum()
                rows, columns = np.nonzero(mask)
                x, y, width, height = annotation["bboxes"][position]
                assert (x, y, x + width - 1, y + height - 1) == (
                    columns.min(),
                    rows.min(),
                    columns.max(),
                    rows.max(),
                )
        assert annotation["score"] == pytest.approx(0.9)
    assert_equal(found, visible_masks(video))


def test_the_layout_coco_video_reads_youtube_vis(tmp_path: Path) -> None:
    video = difficult_video(overlapping=True)
    folder = export(YoutubeVisSink, tmp_path / "o", video)
    problems = Problems()
    samples = read_coco_video(folder, "all", problems).samples
    assert not problems.found
    assert_samples_equal(samples, video, range(len(INDICES)))
    assert list(samples[0].video.frames.names) == [f"{index:05d}" for index in INDICES]


def test_frames_are_exported_in_good_quality(tmp_path: Path) -> None:
    video = [(Frame(0, numbered_frame(0)), segmentation(0, box_masks(64, 48)))]
    for kind, name in (
        (YoutubeVisSink, "JPEGImages/v/00000.jpg"),
        (YoutubeVosSink, "train/JPEGImages/v/00000.jpg"),
        (CocoSink, "images/all/00000.jpg"),
        (LabelmeSink, "00000.jpg"),
    ):
        with Image.open(export(kind, tmp_path / kind.__name__, video, SourceInfo("v.mp4")) / name) as image:
            assert np.abs(np.asarray(image).astype(int) - video[0][0].image).mean() < 3


def test_a_track_with_a_new_expression_is_another_annotation(tmp_path: Path) -> None:
    masks = box_masks(64, 48)
    video = [
        (Frame(k, numbered_frame(k)), replace(segmentation(k, masks), expressions=(text,)))
        for k, text in enumerate("aab")
    ]
    content = json.loads((export(YoutubeVisSink, tmp_path / "o", video) / "annotations.json").read_text())
    visible_in = [[rle is not None for rle in each["segmentations"]] for each in content["annotations"]]
    assert visible_in == [[True, True, False], [False, False, True]]
    assert [each["track_id"] for each in content["annotations"]] == [0, 0]
    assert [each["annotation_ids"] for each in content["expressions"]] == [[1], [2]]


# YouTube-VOS


def test_the_layout_ref_youtube_vos_reads_youtube_vos(tmp_path: Path) -> None:
    video = difficult_video()
    folder = export(YoutubeVosSink, tmp_path / "o", video)
    problems = Problems()
    samples = read_ref_youtube_vos(folder, "train", problems).samples
    assert not problems.found
    assert_samples_equal(samples, video, range(len(INDICES)))
    assert samples[0].video.id == "東京_dog"
    listed = json.loads((folder / "meta_expressions/train/meta_expressions.json").read_text("utf-8"))
    (about,) = listed["videos"].values()
    assert about["frames"] == [f"{index:05d}" for index in INDICES]
    assert (about["frame_indices"], about["times"]) == (list(INDICES), list(TIMES))


def test_youtube_vos_lists_the_frames_of_each_object(tmp_path: Path) -> None:
    video = difficult_video()
    folder = export(YoutubeVosSink, tmp_path / "o", video)
    (about,) = json.loads((folder / "train/meta.json").read_text("utf-8"))["videos"].values()
    masks = visible_masks(video)
    for track, expression in EXPRESSIONS.items():
        (frames,) = [each["frames"] for each in about["objects"].values() if each["category"] == expression]
        assert frames == [f"{index:05d}" for index in INDICES if (index, track) in masks]


def test_in_youtube_vos_the_later_object_is_on_top(tmp_path: Path) -> None:
    video = difficult_video(overlapping=True)
    folder = export(YoutubeVosSink, tmp_path / "o", video)
    masks = masks_of(video)
    with Image.open(folder / "train/Annotations/東京_dog/00005.png") as image:
        assert image.mode == "P"
        indices = np.asarray(image)
    np.testing.assert_array_equal(indices == 3, masks[5, 7])
    np.testing.assert_array_equal(indices == 1, masks[5, 4] & ~masks[5, 7])


def test_more_objects_than_an_indexed_image_holds_are_refused(tmp_path: Path) -> None:
    masks = np.zeros((255, 48, 64), bool)
    with YoutubeVosSink(tmp_path / "o", SOURCE) as sink, pytest.raises(VideoError, match="save ytvis instead"):
        sink.write(Frame(0, numbered_frame(0)), segmentation(0, masks))


# COCO


@pytest.mark.parametrize("overlapping", [False, True])
def test_pycocotools_reads_the_masks_of_coco(tmp_path: Path, overlapping: bool) -> None:
    video = difficult_video(overlapping=overlapping)
    api = COCO(str(export(CocoSink, tmp_path / "o", video) / "annotations/instances_all.json"))
    images = api.loadImgs(api.getImgIds())
    assert [(image["frame_index"], image["time"]) for image in images] == list(zip(INDICES, TIMES, strict=True))
    found = {}
    for annotation in api.loadAnns(api.getAnnIds()):
        (image,) = api.loadImgs(annotation["image_id"])
        found[image["frame_index"], annotation["track_id"]] = api.annToMask(annotation).astype(bool)
        (category,) = api.loadCats(annotation["category_id"])
        assert category["name"] == annotation["attributes"]["expression"] == EXPRESSIONS[annotation["track_id"]]
        assert annotation["score"] == pytest.approx(0.9)
    assert_equal(found, visible_masks(video))


def test_the_layout_coco_video_reads_coco(tmp_path: Path) -> None:
    video = difficult_video(overlapping=True)
    problems = Problems()
    samples = read_coco_video(export(CocoSink, tmp_path / "o", video), "all", problems).samples
    assert not problems.found
    assert_samples_equal(samples, video, [0, 1, 2, 4, 5])  # an image without annotations counts as not annotated


# CVAT


def cvat_masks(file: Path) -> dict[tuple[int, str], Mask]:
    """Decode the visible shapes of an export with CVAT's SDK, by frame and expression."""
    masks = pytest.importorskip("cvat_sdk.masks", reason="the extra 'cvat' installs cvat-sdk")
    found = {}
    for shape in ElementTree.parse(file).getroot().iterfind("track/mask"):
        left, top, width, height = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
        points = [int(run) for run in shape.attrib["rle"].split(",")] + [left, top, left + width - 1, top + height - 1]
        if shape.attrib["outside"] == "0":
            key = int(shape.attrib["frame"]), shape.findtext("attribute[@name='expression']") or ""
            found[key] = masks.decode_mask(points, image_width=WIDTH, image_height=HEIGHT)
    return found


@pytest.mark.parametrize("overlapping", [False, True])
def test_the_sdk_of_cvat_reads_the_masks_of_cvat(tmp_path: Path, overlapping: bool) -> None:
    video = difficult_video(overlapping=overlapping)
    found = cvat_masks(export(CvatSink, tmp_path / "o", video) / "annotations.xml")
    expected = {(index, EXPRESSIONS[track]): mask for (index, track), mask in visible_masks(video).items()}
    assert sorted(found) == sorted(expected)
    for key, mask in expected.items():
        np.testing.assert_array_equal(found[key], mask, err_msg=str(key))


def test_the_layout_cvat_reads_cvat(tmp_path: Path) -> None:
    pytest.importorskip("defusedxml", reason="the extra 'data' installs it")
    video = difficult_video(overlapping=True)
    folder = export(CvatSink, tmp_path / "o", video)
    (folder / "images").mkdir()
    for number in range(10):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"images/frame_{number:06d}.png")
    problems = Problems()
    samples = {sample.expression: sample for sample in read_cvat(folder, "all", problems).samples}
    assert not problems.found
    masks = masks_of(video)
    for track, expression in EXPRESSIONS.items():
        truth = samples[expression].ground_truth
        assert truth is not None
        for index in INDICES:
            mask = masks.get((index, track), np.zeros((HEIGHT, WIDTH), bool))
            assert index in truth.annotated
            np.testing.assert_array_equal(truth.mask(index), mask, err_msg=f"{expression}, {index}")


def outside_frames(folder: Path) -> list[list[int]]:
    tracks = ElementTree.parse(folder / "annotations.xml").getroot().iterfind("track")
    return [[int(shape.attrib["frame"]) for shape in track if shape.attrib["outside"] == "1"] for track in tracks]


def test_tracks_of_cvat_end_where_the_object_is_no_longer_visible(tmp_path: Path) -> None:
    folder = export(CvatSink, tmp_path / "o", difficult_video())
    # Tracks 4, 9 and 7; the run ended after frame 9 of 20.
    assert outside_frames(folder) == [[7, 10], [8], [8, 10]]


@pytest.mark.parametrize(("count", "end"), [(None, []), (10, []), (11, []), (12, [10])])
def test_tracks_of_cvat_do_not_end_after_the_video(tmp_path: Path, count: int | None, end: list[int]) -> None:
    masks = box_masks(64, 48)
    video = [(Frame(9, numbered_frame(0)), segmentation(0, masks))]
    folder = export(CvatSink, tmp_path / "o", video, SourceInfo("v.mp4", frame_count=count))
    assert outside_frames(folder) == [end]


def test_labels_of_cvat_fit_into_its_limit_and_expressions_are_complete(tmp_path: Path) -> None:
    long = "the dog & the <cat> that\nwalk " + "very " * 20 + "slowly \x07\ud800"
    video = [(Frame(0, numbered_frame(0)), replace(segmentation(0, box_masks(64, 48, 2)), expressions=(long, "a cat")))]
    folder = export(CvatSink, tmp_path / "o", video)
    root = ElementTree.parse(folder / "annotations.xml").getroot()
    names = [track.attrib["label"] for track in root.iterfind("track")]
    assert names == [label_of(long), "a cat"]
    assert names[0].startswith("the dog & the <cat> that walk very")
    assert len(names[0]) <= 64
    assert [label["name"] for label in json.loads((folder / "labels.json").read_text())] == names
    assert [element.text for element in root.iterfind("meta/task/labels/label/name")] == names
    text = root.findtext("track/mask/attribute[@name='expression']") or ""
    assert text == "the dog & the <cat> that walk " + "very " * 20 + "slowly \ufffd\ufffd"


# labelme and X-AnyLabeling


def labelme_masks(folder: Path, read: Callable[[dict[str, Any]], Mask]) -> dict[tuple[int, int], Mask]:
    """Read the shapes of all frames; those of a group are united."""
    found: dict[tuple[int, int], Mask] = {}
    times = []
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        with Image.open(folder / content["imagePath"]) as image:
            assert image.size == (content["imageWidth"], content["imageHeight"]) == (WIDTH, HEIGHT)
        times.append((content["frame_index"], content["time"]))
        for shape in content["shapes"]:
            assert shape["label"] == EXPRESSIONS[shape["group_id"]]
            key = content["frame_index"], shape["group_id"]
            found[key] = found.get(key, np.zeros((HEIGHT, WIDTH), bool)) | read(shape)
    assert times == list(zip(INDICES, TIMES, strict=True))
    return found


def mask_of_shape(shape: dict[str, Any]) -> Mask:
    """Paste a shape's image of a mask at its first point, as labelme does."""
    assert shape["shape_type"] == "mask"
    (left, top), (right, bottom) = shape["points"]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
        mask[top : bottom + 1, left : right + 1] = np.asarray(image) > 0
    return mask


def mask_of_polygon(shape: dict[str, Any]) -> Mask:
    """Draw a polygon as X-AnyLabeling's ``shape_to_mask`` does: with Pillow, filled and outlined."""
    assert shape["shape_type"] == "polygon"
    assert len(shape["points"]) > 2
    image = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
    return np.asarray(image)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize(("shapes", "read"), [("mask", mask_of_shape), ("polygon", mask_of_polygon)])
def test_shapes_cover_the_pixels_of_the_masks(
    tmp_path: Path, shapes: str, read: Callable[[dict[str, Any]], Mask], overlapping: bool
) -> None:
    video = difficult_video(overlapping=overlapping)
    folder = export(LabelmeSink, tmp_path / "o", video, shapes=shapes)
    assert_equal(labelme_masks(folder, read), visible_masks(video))
    assert sorted((folder / "labels.txt").read_text("utf-8").splitlines()) == sorted(EXPRESSIONS.values())


def test_labelme_reads_the_masks_of_labelme(tmp_path: Path) -> None:
    labelme = pytest.importorskip("labelme", reason="labelme is a desktop program with Qt")
    video = difficult_video(overlapping=True)
    folder = export(LabelmeSink, tmp_path / "o", video)
    found = {}
    for file in sorted(folder.glob("*.json")):
        content = labelme.LabelFile(str(file))
        for shape in content.shapes:
            classes, _ = labelme.utils.shapes_to_label((HEIGHT, WIDTH), [shape], {shape["label"]: 1})
            found[content.otherData["frame_index"], shape["group_id"]] = classes > 0
    assert_equal(found, visible_masks(video))


def test_shapes_must_be_masks_or_polygons(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="shapes is 'circle'; it must be 'mask'"):
        LabelmeSink(tmp_path / "o", SOURCE, shapes="circle")  # type: ignore[arg-type]


def test_outlines_cover_exactly_the_pixels_of_any_mask() -> None:
    rng = np.random.default_rng(1)
    for trial in range(120):
        height, width = (int(side) for side in rng.integers(1, 30, 2))
        mask = rng.random((height, width)) < rng.choice([0.1, 0.5, 0.9])
        if trial % 2:  # larger shapes
            mask = np.kron(mask[:6, :6], np.ones(rng.integers(1, 6, 2), int)).astype(bool)
        height, width = mask.shape
        image = Image.new("1", (width, height))
        for outline in outlines_through_pixels(mask):
            ImageDraw.Draw(image).polygon(outline, outline=1, fill=1)
        np.testing.assert_array_equal(np.asarray(image), mask)
        polygons = [np.ravel(outline).tolist() for outline in outlines_around_pixels(mask)]
        if polygons:
            drawn = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width)))
            np.testing.assert_array_equal(drawn.astype(bool), mask)
        assert bool(polygons) == mask.any()


# Datumaro


def test_datumaro_reads_the_masks_and_tracks_of_coco(tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="datumaro needs an older Pillow than refervos is tested with")
    video = difficult_video(overlapping=True)
    data = datumaro.Dataset.import_from(str(export(CocoSink, tmp_path / "o", video)), "coco_instances")
    labels = data.categories()[datumaro.AnnotationType.label]
    found = {}
    for item in data:
        assert item.media.data.shape[:2] == (HEIGHT, WIDTH)
        for annotation in item.annotations:
            if annotation.type == datumaro.AnnotationType.mask:
                track = annotation.attributes["track_id"]
                assert labels[annotation.label].name == EXPRESSIONS[track]
                found[int(item.id), track] = np.asarray(annotation.image, bool)
    assert_equal(found, visible_masks(video))


# All exports


def write_one(sink: ExportSink, index: int = 0) -> None:
    sink.write(Frame(index, numbered_frame(index), index / 10), segmentation(index, box_masks(64, 48)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_appears_on_close_and_not_after_abort(kind: type[ExportSink], tmp_path: Path) -> None:
    sink = kind(tmp_path / "deep/o", SOURCE)
    write_one(sink)
    assert not (tmp_path / "deep/o").exists()
    sink.abort()
    assert sink.close() == []
    assert contents(tmp_path) == {}
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_without_frames_leaves_nothing(kind: type[ExportSink], tmp_path: Path) -> None:
    with kind(tmp_path / "o", SOURCE) as sink:
        pass
    assert sink.close() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_of_frames_without_tracks_is_complete(kind: type[ExportSink], tmp_path: Path) -> None:
    with kind(tmp_path / "o", SOURCE) as sink:
        sink.write(Frame(0, numbered_frame(0)), segmentation(0, np.zeros((0, 48, 64), bool)))
    assert (tmp_path / "o" / kind.main_file).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_earlier_export_is_replaced_only_if_allowed(kind: type[ExportSink], tmp_path: Path) -> None:
    for index in range(3):
        with kind(tmp_path / "o", SOURCE, overwrite=True) as sink:
            write_one(sink, index)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="overwrite=True"):
        kind(tmp_path / "o", SOURCE)
    assert contents(tmp_path) == before
    assert not [name for name in before if "00000" in name or "00001" in name]  # of the earlier runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_with_other_files_is_never_replaced(kind: type[ExportSink], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="it is no earlier export; choose another folder"):
        kind(tmp_path, SOURCE, overwrite=True)
    with pytest.raises(OutputError, match="is a file; give a folder"):
        kind(tmp_path / "thesis.txt", SOURCE)
    with pytest.raises(OutputError, match="cannot be written"):
        kind(tmp_path / "thesis.txt" / "o", SOURCE)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused_and_the_rest_kept(kind: type[ExportSink], tmp_path: Path) -> None:
    sink = kind(tmp_path / "o", SOURCE)
    write_one(sink)
    with pytest.raises(VideoError, match="masks of shape"):
        sink.write(Frame(1, numbered_frame(1)), segmentation(1, box_masks(32, 24)))
    with pytest.raises(VideoError, match="has 32x24 pixels, earlier frames 64x48"):
        sink.write(Frame(1, numbered_frame(1, 32, 24)), segmentation(1, box_masks(32, 24)))
    assert sink.close() == [tmp_path / "o"]
    with pytest.raises(VideoError, match="is already closed"):
        write_one(sink, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_write_leaves_nothing(kind: type[ExportSink], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = kind(tmp_path / "o", SOURCE)
    write_one(sink)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kind, "_write", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_one(sink, 1)
    assert sink.close() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "/", ".hidden", "a/../..", "", "CON\x00.mp4"])
def test_the_name_of_a_source_never_leaves_the_folder(name: str, tmp_path: Path) -> None:
    with YoutubeVisSink(tmp_path / "in/o", SourceInfo(name)) as sink:
        write_one(sink)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["o"]
    content = json.loads((tmp_path / "in/o/annotations.json").read_text())
    assert (tmp_path / "in/o/JPEGImages" / content["videos"][0]["file_names"][0]).is_file()


def test_the_lines_of_long_videos_are_in_files_not_in_memory(tmp_path: Path) -> None:
    lines = ObjectLines(tmp_path)
    lines.append(0, "0 a line")
    spooled: Any = lines._files[0]
    assert not spooled._rolled
    for k in range(1, 3000):
        lines.append(k % 2, f"{k} " + "x" * 1000)
    assert spooled._rolled
    assert [int(line.split()[0]) for line in lines.of(1)] == list(range(1, 3000, 2))
    lines.close()
    assert list(tmp_path.iterdir()) == []


# On the command line


def rows_of(path: Path) -> dict[tuple[int, int], Mask]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    masks = {(row["frame"], row["track"]): coco.decode(row).astype(bool) for row in rows}
    return {key: mask for key, mask in masks.items() if mask.any()}


def test_the_command_line_writes_exports_with_the_masks_of_its_run_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["segment", str(EXAMPLE), "the red circle", "--start", "5", "--frames", "4", "-o", "o", "-q"]
    outputs = [f"--save={name}" for name in ("rle", "ytvis", "ytvos", "coco", "cvat", "labelme", "anylabeling")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["refervos", *arguments, *outputs])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    expected = rows_of(tmp_path / "o/masks.jsonl")
    assert {index for index, _ in expected} == {5, 6, 7, 8}
    content = json.loads((tmp_path / "o/ytvis/annotations.json").read_text())
    indices = content["videos"][0]["frame_indices"]
    segmentations = content["annotations"][0]["segmentations"]
    pairs = zip(indices, segmentations, strict=True)
    assert_equal({(index, 0): coco.decode(rle).astype(bool) for index, rle in pairs}, expected)
    for index, _ in expected:
        with Image.open(tmp_path / f"o/ytvos/train/Annotations/shapes/{index:05d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image) == 1, expected[index, 0])
        for folder in ("labelme", "anylabeling"):
            assert json.loads((tmp_path / f"o/{folder}/{index:05d}.json").read_text())["frame_index"] == index
    assert outside_frames(tmp_path / "o/cvat") == [[9]]
    assert len(COCO(str(tmp_path / "o/coco/annotations/instances_all.json")).imgs) == 4


def test_a_resumed_run_writes_exports_to_a_new_folder(tmp_path: Path) -> None:
    with open_source(EXAMPLE) as source:
        for resume in (False, True, True):
            (sink,) = open_sinks([Output.cvat], tmp_path, source, False, resume)
            write_one(sink)
            sink.close()
    assert sorted(path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("annotations.xml")) == [
        "cvat",
        "resumed-1/cvat",
        "resumed-2/cvat",
    ]
