"""Mask images are read as strictly as predictions: only 0 and one other value form a mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import layouts
import layouts_images
from refervos.data.catalogue import open_dataset
from refervos.data.check import check_dataset
from refervos.data.files import Problems
from refervos.data.layouts.json_lines import read_json_lines
from refervos.data.sample import Sample
from refervos.errors import DataError, EvaluationError
from refervos.evaluation.datasets import Part
from refervos.evaluation.predictions import read_mask
from refervos.evaluation.scoring import score

SIZE = (48, 64)


def target() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[10:30, 20:44] = True
    return mask


def border(width: int = 2) -> np.ndarray:
    """Return the border around the mask that DAVIS marks as void."""
    around = np.zeros(SIZE, bool)
    around[10 - width : 30 + width, 20 - width : 44 + width] = True
    return around & ~target()


def smoothed() -> np.ndarray:
    image = Image.fromarray(target().astype(np.uint8) * 255)
    large = image.resize((2 * SIZE[1], 2 * SIZE[0]), Image.Resampling.BICUBIC)
    return np.asarray(large.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC))


IMAGES: dict[str, np.ndarray] = {
    "0 and 255": target() * np.uint8(255),
    "0 and 1": target().astype(np.uint8),
    "nothing": np.zeros(SIZE, np.uint8),
    "everything": np.full(SIZE, 255, np.uint8),
    "void": target() + border() * np.uint8(255),
    "smoothed": smoothed(),
    "two objects": target() + border() * np.uint8(2),
    "one value": target() * np.uint8(3),
    "a single pixel": np.maximum(target() * np.uint8(255), np.eye(*SIZE, dtype=np.uint8)),
}


def write(root: Path, image: np.ndarray, **line: Any) -> Path:
    (root / "v").mkdir()
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(root / "v" / "0.jpg")
    Image.fromarray(image).save(root / "mask.png")
    record = {"video": "v", "expression": "it", "masks": ["mask.png"], **line}
    (root / "expressions.jsonl").write_text(json.dumps(record))
    return root


def only(root: Path) -> Sample:
    (sample,) = read_json_lines(root, "all", Problems()).samples
    return sample


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_a_valid_ground_truth_mask_when_it_is_a_valid_predicted_mask(tmp_path: Path, name: str) -> None:
    ground_truth = only(write(tmp_path, IMAGES[name])).ground_truth
    assert ground_truth is not None
    try:
        predicted = read_mask(tmp_path / "mask.png", SIZE)
    except EvaluationError:
        with pytest.raises(DataError, match=r"mask\.png is not binary.*'value'.*'void'"):
            ground_truth.mask(0)
        assert any("mask.png is not binary" in problem for problem in check_dataset("json-lines", tmp_path).problems)
    else:
        assert np.array_equal(ground_truth.mask(0), predicted)


def test_void_gives_the_value_of_void_pixels(tmp_path: Path) -> None:
    ground_truth = only(write(tmp_path, IMAGES["void"], void=255)).ground_truth
    assert ground_truth is not None
    assert np.array_equal(ground_truth.mask(0), target())
    void = ground_truth.void(0)
    assert void is not None
    assert np.array_equal(void, border())


def test_value_selects_an_object_among_others_and_void_pixels(tmp_path: Path) -> None:
    image = np.where(border(), np.uint8(255), IMAGES["two objects"])
    image[40:44, 40:44] = 7
    ground_truth = only(write(tmp_path, image, value=1, void=[255, 7])).ground_truth
    assert ground_truth is not None
    assert np.array_equal(ground_truth.mask(0), target())
    void = ground_truth.void(0)
    assert void is not None
    assert np.array_equal(void, np.isin(image, [255, 7]))


def test_void_pixels_do_not_affect_scores(tmp_path: Path) -> None:
    write(tmp_path, IMAGES["void"], void=255)
    predictions = tmp_path / "predictions" / "v" / "0"
    predictions.mkdir(parents=True)
    Image.fromarray((target() | border()) * np.uint8(255)).save(predictions / "0.png")
    (result,) = score(tmp_path / "predictions", Part("json-lines", tmp_path), show_progress=False).summary.results
    assert result.scores is not None
    assert result.scores.j == 1.0


def test_the_error_for_a_16_bit_image_says_so(tmp_path: Path) -> None:
    ground_truth = only(write(tmp_path, target().astype(np.uint16))).ground_truth
    assert ground_truth is not None
    with pytest.raises(DataError, match="16 bits per pixel"):
        ground_truth.mask(0)


def test_masks_of_long_rvos_must_be_binary(tmp_path: Path) -> None:
    layouts.write_long_rvos(tmp_path)
    file = next((tmp_path / "valid" / "Annotations").rglob("*.png"))
    Image.fromarray(smoothed()).save(file)
    assert any(f"{file} is not binary" in problem for problem in check_dataset("long-rvos", tmp_path).problems)


# Inconsistent data.


def more_puppet_masks(root: Path) -> str:
    import scipy.io

    layouts.write_jhmdb_sentences(root, scored=False)
    file = next((root / "puppet_mask").rglob("puppet_mask.mat"))
    masks = scipy.io.loadmat(file)["part_mask"]
    scipy.io.savemat(file, {"part_mask": np.concatenate([masks] * 3, axis=2)})
    return "has masks for 15 frames"


def a_video_of_two_actions(root: Path) -> str:
    layouts.write_jhmdb_sentences(root)
    (root / "Rename_Images" / "wave" / "jhmdb00").rename(root / "Rename_Images" / "wave" / "kept")
    for action in ("walk", "run"):
        folder = root / "Rename_Images" / action / "jhmdb00"
        folder.parent.mkdir()
        folder.symlink_to(root / "Rename_Images" / "wave" / "kept")
    return "both"


def masks_of_other_names(root: Path) -> str:
    layouts.write_long_rvos(root)
    file = next((root / "valid" / "Annotations").rglob("*.png"))
    short = file.with_name(f"{int(file.stem)}.png")
    file.rename(short)
    return f"{short} matches no frame"


def another_length(root: Path) -> str:
    layouts_images.write_coco_video(root)
    layouts.change_json(root / "train" / "instances.json", lambda content: content["videos"][0].update(length=9))
    return "'length'"


def a_target_and_none(root: Path) -> str:
    layouts_images.write_grefcoco(root)
    layouts.change_json(root / "grefcoco" / "grefs(unc).json", lambda refs: refs[0].update(no_target=True, ann_id=[2]))
    return "'no_target'"


def nothing_and_a_target(root: Path) -> str:
    layouts_images.write_grefcoco(root)
    layouts.change_json(root / "grefcoco" / "grefs(unc).json", lambda refs: refs[0].update(ann_id=[-1, 2]))
    return "-1, for no target, must be the only entry"


def two_files_of_a_frame(root: Path) -> str:
    layouts.write_a2d_sentences(root, images=True, videos=1)
    file = next(root.rglob("00002.h5"))
    shutil.copy(file, file.with_name("2.h5"))
    return "contains both 00002.h5 and 2.h5"


WRONG: list[tuple[str, str | None, Callable[[Path], str]]] = [
    ("jhmdb-sentences", "test", more_puppet_masks),
    ("jhmdb-sentences", "test", a_video_of_two_actions),
    ("a2d-sentences", "test", two_files_of_a_frame),
    ("long-rvos", "valid", masks_of_other_names),
    ("coco-video", "train", another_length),
    ("grefcoco", "train", a_target_and_none),
    ("grefcoco", "train", nothing_and_a_target),
]


@pytest.mark.parametrize(("name", "split", "spoil"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_inconsistent_data_is_reported_by_the_check(
    tmp_path: Path, name: str, split: str | None, spoil: Callable[[Path], str]
) -> None:
    reason = spoil(tmp_path)
    assert any(reason in problem for problem in check_dataset(name, tmp_path, split).problems)


def test_masks_are_found_with_and_without_leading_zeros_in_the_frame_number(tmp_path: Path) -> None:
    layouts.write_a2d_sentences(tmp_path, images=True, videos=1)
    before = open_dataset("a2d-sentences", tmp_path).samples[0].ground_truth
    assert before is not None
    masks = [before.mask(index) for index in before.annotated]
    for file in list(tmp_path.rglob("*.h5")):
        file.rename(file.with_name(f"{int(file.stem)}.h5"))
    ground_truth = open_dataset("a2d-sentences", tmp_path).samples[0].ground_truth
    assert ground_truth is not None
    assert np.array_equal([ground_truth.mask(index) for index in ground_truth.annotated], masks)


@pytest.mark.parametrize("images", [True, False])
def test_a_mask_past_the_end_of_a_video_is_refused_when_masks_are_scored(tmp_path: Path, images: bool) -> None:
    layouts.write_a2d_sentences(tmp_path / "data", images=images, videos=1)
    masks = next((tmp_path / "data" / "text_annotations" / "a2d_annotation_with_instances").rglob("00002.h5"))
    masks.rename(masks.with_name("00042.h5"))
    (tmp_path / "predictions").mkdir()
    with pytest.raises(DataError, match="frame 42"):
        score(tmp_path / "predictions", Part("a2d-sentences", tmp_path / "data"), show_progress=False)
    dataset = open_dataset("a2d-sentences", tmp_path / "data")
    with pytest.raises(DataError):
        dataset.samples[0].video.frames.read(41)
