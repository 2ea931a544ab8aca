"""Masks of CVAT exports match their frames: deleted frames, projects, image order, gaps, changing expressions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sets import refusal
from refervos.data.check import check_dataset
from refervos.data.files import Problems
from refervos.data.layouts.cvat import read_cvat
from refervos.data.sample import Sample
from refervos.errors import DataError
from video_files import write_video

HEIGHT, WIDTH, FRAMES = 48, 96, 8
RED = "the red square"


def square(position: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the square at a position."""
    return 4 + 8 * position, 10, 16 + 8 * position, 30


def drawn(position: int) -> np.ndarray:
    """Draw the frame with the square at a position."""
    frame = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    left, top, right, bottom = square(position)
    frame[top:bottom, left:right] = (200, 30, 30)
    return frame


def shape(number: int, position: int, outside: int = 0, text: str | None = RED) -> str:
    """Return CVAT's polygon around the square for a frame."""
    left, top, right, bottom = square(position)
    points = f"{left},{top};{right},{top};{right},{bottom};{left},{bottom}"
    attribute = "" if text is None else f'<attribute name="expression">{text}</attribute>'
    return f'<polygon frame="{number}" keyframe="1" outside="{outside}" points="{points}">{attribute}</polygon>'


def track(shapes: Iterable[str], id: int = 0, more: str = "") -> str:
    return f'<track id="{id}" label="square"{more}>{"".join(shapes)}</track>'


def task_meta(stop: int = FRAMES - 1, start: int = 0, more: str = "", tag: str = "task") -> str:
    return f"<{tag}><start_frame>{start}</start_frame><stop_frame>{stop}</stop_frame>{more}</{tag}>"


VIDEO, IMAGES = "<mode>interpolation</mode>", "<mode>annotation</mode>"


def write(root: Path, tracks: str, meta: str = "", images: dict[str, int] | None = None) -> Path:
    """Write an export; ``images`` maps file names to the position of the square."""
    root.mkdir(parents=True, exist_ok=True)
    meta = meta or task_meta()
    (root / "annotations.xml").write_text(
        f"<annotations><version>1.1</version><meta>{meta}</meta>{tracks}</annotations>"
    )
    for name, position in (named(range(FRAMES)) if images is None else images).items():
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(position)).save(path, format="PNG")
    return root


def named(positions: Iterable[int], shift: int = 0, folder: str = "") -> dict[str, int]:
    """Name images like CVAT's video frames; return the position of the square in each."""
    return {f"{folder}frame_{position + shift:06d}.PNG": position for position in positions}


def overlaps(sample: Sample) -> dict[str, float]:
    """Return the IoU of mask and square in each annotated frame, by frame name."""
    assert sample.ground_truth is not None
    found = {}
    for index in sample.ground_truth.annotated:
        visible, mask = sample.video.frames.read(index)[..., 0] > 100, sample.ground_truth.mask(index)
        found[sample.video.frames.names[index]] = round(float((mask & visible).sum() / (mask | visible).sum()), 2)
    return found


def only(root: Path) -> Sample:
    (sample,) = read_cvat(root, "all", Problems()).samples
    return sample


def refusal_of(root: Path) -> str:
    """Return the sentence with which an export is refused, which the check must report as well."""
    sentence = refusal(lambda: read_cvat(root, "all", Problems()))
    assert str(root) in sentence
    assert sentence in check_dataset("cvat", root).problems
    return sentence


# Deleted frames.


@pytest.mark.parametrize("deleted", [{2}, {0}, {7}, {0, 3, 4}])
@pytest.mark.parametrize("mode", ["", VIDEO])
def test_masks_match_their_frames_when_other_frames_were_deleted(tmp_path: Path, deleted: set[int], mode: str) -> None:
    kept = [position for position in range(FRAMES) if position not in deleted]
    write(tmp_path, track(shape(p, p) for p in kept), task_meta(more=mode), named(kept))
    assert overlaps(only(tmp_path)) == {f"frame_{position:06d}": 1.0 for position in kept}
    (note,) = check_dataset("cvat", tmp_path).splits[0].notes
    assert f"{len(deleted)} of the task's 8 frames have no image" in note
    assert f"the first is frame {min(deleted)};" in note


def test_deleted_frames_are_distinguished_from_frames_without_the_object(tmp_path: Path) -> None:
    kept = [0, 1, 3, 4, 5, 6]
    shapes = [shape(p, p) for p in (0, 1, 3, 4)] + [shape(5, 5, outside=1)]
    write(tmp_path, track(shapes), images=named(kept))
    found = overlaps(only(tmp_path))
    assert list(found.values()) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert list(found) == [f"frame_{position:06d}" for position in kept]


def test_a_shape_in_a_frame_without_an_image_is_refused(tmp_path: Path) -> None:
    write(tmp_path, track(shape(p, p) for p in range(FRAMES)), images=named([0, 1, 3, 4, 5, 6, 7]))
    assert "frame 2, which the video does not have" in refusal_of(tmp_path)


def test_a_task_may_start_late_and_skip_frames(tmp_path: Path) -> None:
    numbers = [2, 4, 6]
    meta = task_meta(6, 2, VIDEO + "<frame_filter>step=2</frame_filter>")
    write(tmp_path, track(shape(p, p) for p in (2, 6)), meta, named([2, 6]))
    assert overlaps(only(tmp_path)) == {"frame_000002": 1.0, "frame_000006": 1.0}
    write(tmp_path / "odd", track(shape(p, p) for p in numbers), meta, named([2, 3, 4, 6]))
    assert "frame_000003.PNG is not a frame of the task; its frames are 2 to 6 in steps of 2" in refusal_of(
        tmp_path / "odd"
    )


def test_an_unknown_frame_filter_is_refused(tmp_path: Path) -> None:
    write(tmp_path, track([shape(0, 0)]), task_meta(more="<frame_filter>every second</frame_filter>"))
    assert "'every second'" in refusal_of(tmp_path)


def test_a_job_keeps_the_frame_numbers_of_its_task(tmp_path: Path) -> None:
    meta = task_meta(6, 4, VIDEO, tag="job")
    write(tmp_path, track(shape(p, p) for p in (4, 5, 6)), meta, named([4, 5, 6]))
    assert list(overlaps(only(tmp_path)).values()) == [1.0, 1.0, 1.0]


def test_a_stated_length_of_a_hundred_billion_frames_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path, track(shape(p, p) for p in range(FRAMES)), task_meta(10**11))
    assert len(overlaps(only(tmp_path))) == FRAMES


# Tasks created from images.


def test_images_of_a_task_are_ordered_alphabetically(tmp_path: Path) -> None:
    names = sorted(f"img{number}.png" for number in range(5, 13))
    images = {name: position for position, name in enumerate(names)}
    write(tmp_path, track(shape(p, p) for p in range(FRAMES)), task_meta(more=IMAGES), images)
    sample = only(tmp_path)
    assert list(sample.video.frames.names) == ["img10", "img11", "img12", "img5", "img6", "img7", "img8", "img9"]
    assert set(overlaps(sample).values()) == {1.0}
    (note,) = check_dataset("cvat", tmp_path).splits[0].notes
    assert "img10.png comes before img5.png" in note
    assert "CVAT for images" in note


def test_images_named_like_video_frames_but_numbered_from_1_keep_their_order(tmp_path: Path) -> None:
    """Extracted frames numbered from 1 and uploaded as images, which CVAT numbers from 0."""
    images = {f"frame_{position + 1:06d}.png": position for position in range(FRAMES)}
    for mode in ("", IMAGES):
        root = write(
            tmp_path / (mode and "stated"), track(shape(p, p) for p in range(FRAMES)), task_meta(more=mode), images
        )
        assert set(overlaps(only(root)).values()) == {1.0}


def test_deleted_images_are_refused_when_names_have_no_frame_numbers(tmp_path: Path) -> None:
    images = {f"{letter}.png": position for position, letter in enumerate("abcdefgh") if position != 2}
    write(tmp_path, track(shape(p, p) for p in (0, 1, 3)), task_meta(more=IMAGES), images)
    sentence = refusal_of(tmp_path)
    assert "8 frames" in sentence
    assert "7 images" in sentence
    assert "CVAT for images" in sentence


def test_images_in_a_subfolder_are_one_video(tmp_path: Path) -> None:
    write(tmp_path, track(shape(p, p) for p in range(FRAMES)), images=named(range(FRAMES), folder="seq1/"))
    assert set(overlaps(only(tmp_path)).values()) == {1.0}


def test_images_with_the_same_name_in_two_subfolders_are_refused(tmp_path: Path) -> None:
    write(tmp_path, track([shape(0, 0)]), task_meta(1), {"seq1/a.png": 0, "seq2/a.png": 1})
    assert "contains both seq1/a.png and seq2/a.png" in refusal_of(tmp_path)


# Gaps.


def test_frames_in_an_unexplained_gap_are_not_annotated(tmp_path: Path) -> None:
    write(tmp_path, track([shape(0, 0), shape(5, 5)]))
    assert overlaps(only(tmp_path)) == {"frame_000000": 1.0, "frame_000005": 1.0}


def test_an_object_is_absent_before_its_track_and_while_outside(tmp_path: Path) -> None:
    write(tmp_path, track([shape(2, 2), shape(3, 3, outside=1), shape(6, 6), shape(7, 7)]))
    assert list(overlaps(only(tmp_path)).values()) == [0, 0, 1.0, 0, 0, 0, 1.0, 1.0]


def test_frames_after_a_track_that_ends_without_outside_are_not_annotated(tmp_path: Path) -> None:
    write(tmp_path, track([shape(2, 2), shape(3, 3)]))
    assert overlaps(only(tmp_path)) == {
        "frame_000000": 0,
        "frame_000001": 0,
        "frame_000002": 1.0,
        "frame_000003": 1.0,
    }


def test_a_frame_is_annotated_when_all_targets_are(tmp_path: Path) -> None:
    tracks = track([shape(p, p) for p in range(FRAMES)]) + track([shape(1, 1), shape(6, 6)], 1)
    write(tmp_path, tracks)
    assert overlaps(only(tmp_path)) == {"frame_000000": 1.0, "frame_000001": 1.0, "frame_000006": 1.0}


def test_targets_without_a_common_annotated_frame_are_refused(tmp_path: Path) -> None:
    tracks = track([shape(0, 0, text="x"), shape(1, 1, text="y")]) + track(
        [shape(0, 0, text="y"), shape(1, 1, text="x")], 1
    )
    write(tmp_path, tracks, images=named([0, 1]))
    assert "no frame is annotated for all 2 tracks of 'x'" in refusal_of(tmp_path)


# Expressions.


def test_a_changing_expression_applies_to_its_own_frames(tmp_path: Path) -> None:
    texts = ["the square on the left"] * 3 + ["the square on the right"] * 4
    shapes = [shape(p, p, text=text) for p, text in enumerate(texts)] + [shape(7, 7, outside=1)]
    write(tmp_path, track(shapes))
    left, right = read_cvat(tmp_path, "all", Problems()).samples
    assert (left.expression, right.expression) == (texts[0], texts[-1])
    assert list(overlaps(left)) == [f"frame_{p:06d}" for p in (0, 1, 2, 7)]
    assert list(overlaps(right)) == [f"frame_{p:06d}" for p in (3, 4, 5, 6, 7)]
    assert list(overlaps(right).values()) == [1.0, 1.0, 1.0, 1.0, 0]


def test_an_expression_given_once_applies_to_the_whole_track(tmp_path: Path) -> None:
    for reason in (0, 3, 7):
        texts = [RED if position == reason else None if position % 2 else "" for position in range(FRAMES)]
        root = write(tmp_path / str(reason), track(shape(p, p, text=text) for p, text in enumerate(texts)))
        assert list(overlaps(only(root)).values()) == [1.0] * FRAMES


# Projects.


def project(tasks: Sequence[tuple[int, str]], more: str = VIDEO, length: int = 4) -> str:
    elements = "".join(
        task_meta(length - 1, more=f"<id>{id}</id><subset>{subset}</subset>{more}") for id, subset in tasks
    )
    return f"<project><id>3</id><tasks>{elements}</tasks></project>"


def moving(task: int, subset: str, id: int, shift: int = 0, first: int = 0) -> str:
    """Return a track of four frames that starts with the square at a position."""
    shapes = (shape(number + shift, number + first) for number in range(4))
    return track(shapes, id, f' task_id="{task}" subset="{subset}"')


def test_each_task_of_a_project_is_a_video(tmp_path: Path) -> None:
    tracks = moving(5, "train", 0) + moving(6, "val", 1, first=4)
    images = named(range(4), folder="train/") | named(range(4, 8), -4, folder="val/")
    write(tmp_path / "set", tracks, project([(5, "train"), (6, "val")]), images)
    samples = read_cvat(tmp_path, "all", Problems()).samples
    assert [sample.key for sample in samples] == [("set-5", "0"), ("set-6", "0")]
    assert [list(overlaps(sample).values()) for sample in samples] == [[1.0] * 4] * 2


def test_tasks_of_a_subset_are_separated_by_consecutive_numbers(tmp_path: Path) -> None:
    tracks = moving(5, "default", 0) + moving(6, "default", 1, shift=4, first=4)
    images = named(range(8), folder="default/")
    write(tmp_path, tracks, project([(5, "default"), (6, "default")]), images)
    samples = read_cvat(tmp_path, "all", Problems()).samples
    assert [list(overlaps(sample)) for sample in samples] == [
        [f"frame_{number:06d}" for number in range(4)],
        [f"frame_{number:06d}" for number in range(4, 8)],
    ]
    assert {value for sample in samples for value in overlaps(sample).values()} == {1.0}


@pytest.mark.parametrize("folder", ["default/", ""])
def test_tasks_that_share_their_images_are_refused(tmp_path: Path, folder: str) -> None:
    tracks = moving(5, "default", 0) + moving(6, "default", 1, first=4)
    write(tmp_path, tracks, project([(5, "default"), (6, "default")]), named(range(4), folder=folder))
    sentence = refusal_of(tmp_path)
    assert "task 5" in sentence
    assert "do not identify the task" in sentence


def test_tasks_of_images_in_one_folder_are_refused(tmp_path: Path) -> None:
    tracks = moving(5, "default", 0) + moving(6, "default", 1, shift=4)
    images = {f"default/{letter}.png": position for position, letter in enumerate("abcdefgh")}
    write(tmp_path, tracks, project([(5, "default"), (6, "default")], IMAGES), images)
    assert "CVAT for images" in refusal_of(tmp_path)


def test_ambiguous_frame_numbers_are_refused(tmp_path: Path) -> None:
    tasks = task_meta(1, more=f"<id>5</id>{VIDEO}") + task_meta(7, more=f"<id>6</id>{VIDEO}")
    tracks = track([shape(0, 0)], 0, ' task_id="5"') + track([shape(4, 4)], 1, ' task_id="6"')
    write(tmp_path, tracks, f"<project><tasks>{tasks}</tasks></project>")
    assert "the frame numbers of the tracks of tasks 5, 6 are ambiguous" in refusal_of(tmp_path)


def test_tracks_of_unlisted_tasks_are_refused(tmp_path: Path) -> None:
    tracks = moving(5, "default", 0) + moving(6, "default", 1)
    write(tmp_path / "a", tracks)
    assert "tracks of the tasks 5, 6" in refusal_of(tmp_path / "a")
    write(tmp_path / "b", moving(7, "train", 0), project([(5, "train"), (6, "val")]))
    assert "task 7" in refusal_of(tmp_path / "b")
    write(tmp_path / "c", track([shape(0, 0)]), project([(5, "train"), (6, "val")]))
    assert "has no task_id" in refusal_of(tmp_path / "c")


def test_a_project_reads_its_named_video_files(tmp_path: Path) -> None:
    tracks = moving(5, "", 0) + moving(6, "", 1, shift=4, first=4)
    tasks = "".join(
        task_meta(3, more=f"<id>{id}</id>{VIDEO}<source>{name}</source>") for id, name in ((5, "b.mp4"), (6, "a.mp4"))
    )
    write(tmp_path, tracks, f"<project><tasks>{tasks}</tasks></project>", {})
    for name, first in (("b.mp4", 0), ("a.mp4", 4)):
        images = [drawn(first + number) for number in range(4)]
        write_video(tmp_path / name, 4, width=WIDTH, height=HEIGHT, images=images)
    samples = read_cvat(tmp_path, "all", Problems()).samples
    assert all(value > 0.8 for sample in samples for value in overlaps(sample).values())
    (tmp_path / "a.mp4").unlink()
    assert "none named a.mp4" in refusal_of(tmp_path)


def test_a_subset_with_a_path_outside_the_export_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "set", moving(5, "../../other", 0), project([(5, "../../other")]), {})
    (tmp_path / "set" / "images").mkdir()
    write(tmp_path / "other", "", images=named(range(4)))
    assert "is outside" in refusal_of(tmp_path / "set")


# CVAT for images.


def image(number: int, name: str, shapes: str = "", width: int = WIDTH) -> str:
    return f'<image id="{number}" name="{name}" width="{width}" height="{HEIGHT}">{shapes}</image>'


def still(position: int, text: str | None = RED) -> str:
    return shape(0, position, text=text).replace('frame="0" keyframe="1" outside="0"', 'label="square"')


def test_cvat_for_images_states_the_image_of_each_frame(tmp_path: Path) -> None:
    names = ["img1.png", "img2.png", "img10.png"]
    listed = "".join(image(number, name, still(number)) for number, name in enumerate(names) if number != 1)
    write(tmp_path, listed, "<task/>", {name: position for position, name in enumerate(names)})
    assert overlaps(only(tmp_path)) == {"img1": 1.0, "img10": 1.0}


def test_an_image_without_shapes_is_not_annotated(tmp_path: Path) -> None:
    """An image with a shape is assumed complete; one without may be unlabelled."""
    listed = image(0, "a.png", still(0) + still(3, "another")) + image(1, "b.png", still(1)) + image(2, "c.png")
    write(tmp_path, listed, "<task/>", {"a.png": 0, "b.png": 1, "c.png": 2})
    red, another = read_cvat(tmp_path, "all", Problems()).samples
    assert overlaps(red) == {"a": 1.0, "b": 1.0}
    assert overlaps(another) == {"a": 0.0, "b": 0.0}


def test_video_frames_are_listed_without_a_suffix(tmp_path: Path) -> None:
    listed = "".join(image(number, f"frame_{number:06d}", still(number)) for number in (0, 2, 3))
    write(tmp_path / "images", listed, "<task/>", named([0, 2, 3]))
    assert list(overlaps(only(tmp_path / "images")).values()) == [1.0] * 3
    write(tmp_path / "video", listed, "<task/>", {})
    write_video(tmp_path / "video" / "x.mp4", 5, width=WIDTH, height=HEIGHT, images=[drawn(n) for n in range(5)])
    assert all(value > 0.8 for value in overlaps(only(tmp_path / "video")).values())


def test_each_folder_of_listed_images_is_a_video(tmp_path: Path) -> None:
    listed = "".join(image(n, f"{folder}/0.png", still(n)) for n, folder in enumerate(("one", "two")))
    write(tmp_path / "set", listed, "<task/>", {"one/0.png": 0, "two/0.png": 1})
    samples = read_cvat(tmp_path, "all", Problems()).samples
    assert [sample.video.id for sample in samples] == ["set-one", "set-two"]
    assert [list(overlaps(sample).values()) for sample in samples] == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        (image(0, "gone.png", still(0)), "gone.png, listed by "),
        (image(0, "../a.png", still(0)), "is outside"),
        (image(0, "/etc/a.png", still(0)), "is outside"),
        (image(0, "a.png", still(0), width=6553), "states 6553x48 pixels"),
        (image(0, "a.png", '<box label="x" xtl="1" ytl="1" xbr="2" ybr="2"/>'), "box, which is not a mask"),
        (image(0, "a.png", still(0)) + image(0, "b.png", still(0)), "same number"),
        (image(0, "a.png", still(0)) + track([shape(0, 0)]), "both tracks and images"),
        (image(0, "a.png", still(0)) + "<frames/>", "<frames>"),
    ],
)
def test_invalid_listed_images_are_refused_with_the_reason(tmp_path: Path, listed: str, reason: str) -> None:
    write(tmp_path / "set", listed, "<task/>", {"a.png": 0, "b.png": 1})
    write(tmp_path, "", images={"a.png": 0})
    (tmp_path / "annotations.xml").unlink()
    assert reason in refusal_of(tmp_path / "set")


# Whole exports.


def test_a_stated_size_is_compared_with_the_frames(tmp_path: Path) -> None:
    size = "<original_size><width>6000</width><height>6000</height></original_size>"
    write(tmp_path, track([shape(0, 0)]), task_meta(more=size))
    assert "6000x6000 pixels" in refusal_of(tmp_path)


def test_an_xml_file_that_is_not_an_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text("<annotation><folder>VOC</folder></annotation>")
    assert "<annotation>" in refusal_of(tmp_path)


def test_two_videos_with_the_same_id_are_refused(tmp_path: Path) -> None:
    tracks = moving(5, "train", 0) + moving(6, "val", 1)
    images = named(range(4), folder="train/") | named(range(4), folder="val/")
    write(tmp_path / "set", tracks, project([(5, "train"), (6, "val")]), images)
    write(tmp_path / "set-5", track(shape(p, p) for p in range(4)), task_meta(3), named(range(4)))
    with pytest.raises(DataError, match=r"set-5"):
        read_cvat(tmp_path, "all", Problems())
