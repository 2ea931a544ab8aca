"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO are read from their published layouts; errors name the file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layouts_images as layouts
from data_sets import assert_as_written, read_everything, refusal
from layouts import change_json
from refervos.data.files import Problems
from refervos.data.layouts.refcoco import (
    read_grefcoco,
    read_refcoco,
    read_refcoco_plus,
    read_refcocog,
)
from refervos.data.pickles import read_plain_pickle
from refervos.data.sample import Dataset
from refervos.errors import DataError

IMAGES = "images/mscoco/images/train2014"


def read(root: Path, split: str = "val") -> Dataset:
    return read_refcoco(root, split, Problems())


@pytest.mark.parametrize("split", ["train", "val", "testA", "testB"])
def test_each_expression_of_a_split_is_a_sample_with_the_exact_mask(tmp_path: Path, split: str) -> None:
    written = layouts.write_refcoco(tmp_path)
    dataset = read(tmp_path, split)
    assert (dataset.name, dataset.split) == ("refcoco", split)
    assert {sample.video.size for sample in dataset.samples} == {layouts.SIZE}
    assert_as_written(dataset, [one for one in written if one.split == split])


def test_refcoco_plus_and_refcocog_are_read_from_their_own_folders(tmp_path: Path) -> None:
    plus = layouts.write_refcoco(tmp_path, "refcoco+", ("val",))
    umd = layouts.write_refcoco(tmp_path, "refcocog", ("train", "test"), "umd")
    assert_as_written(read_refcoco_plus(tmp_path, "val", Problems()), plus)
    assert_as_written(read_refcocog(tmp_path, "test", Problems()), [one for one in umd if one.split == "test"])


def test_a_prefix_of_the_split_selects_another_partition(tmp_path: Path) -> None:
    layouts.write_refcoco(tmp_path, "refcocog", ("train", "test", "val"), "umd")
    google = layouts.write_refcoco(tmp_path, "refcocog", ("val", "train", "val"), "google")
    dataset = read_refcocog(tmp_path, "google:val", Problems())
    assert dataset.split == "google:val"
    assert_as_written(dataset, [one for one in google if one.split == "val"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_converted_layout_is_detected(tmp_path: Path, split: str) -> None:
    written = layouts.write_converted_refcoco(tmp_path)
    assert_as_written(read(tmp_path, split), [one for one in written if one.split == split])


def test_the_distributed_layout_takes_precedence_over_the_converted_one(tmp_path: Path) -> None:
    layouts.write_converted_refcoco(tmp_path)
    written = layouts.write_refcoco(tmp_path)
    assert_as_written(read(tmp_path), [one for one in written if one.split == "val"])


def test_grefcoco_has_expressions_with_several_targets_and_with_none(tmp_path: Path) -> None:
    written = layouts.write_grefcoco(tmp_path)
    dataset = read_grefcoco(tmp_path, "val", Problems())
    assert_as_written(dataset, [one for one in written if one.split == "val"])
    assert {(sample.kind, len(sample.object_ids)) for sample in dataset.samples} >= {
        ("no target", 0),
        ("one target", 1),
        ("several targets", 2),
    }


def test_the_folder_of_one_benchmark_can_be_given(tmp_path: Path) -> None:
    written = layouts.write_refcoco(tmp_path)
    assert_as_written(read(tmp_path / "refcoco", "testA"), [one for one in written if one.split == "testA"])


@pytest.mark.parametrize("images", ["images/train2014", "train2014", "refcoco/train2014"])
def test_images_are_found_in_every_common_folder(tmp_path: Path, images: str) -> None:
    written = layouts.write_refcoco(tmp_path, images=images)
    assert_as_written(read(tmp_path), [one for one in written if one.split == "val"])


def test_samples_of_an_image_are_adjacent_and_share_its_video(tmp_path: Path) -> None:
    layouts.write_refcoco(tmp_path, splits=("train", "train"))
    path = tmp_path / "refcoco" / "refs(unc).p"
    refs = read_plain_pickle(path)
    refs = refs[::2] + refs[1::2]
    path.write_bytes(pickle.dumps(refs, protocol=2))
    dataset = read(tmp_path, "train")
    videos = [sample.video for sample in dataset.samples]
    changes = sum(one is not other for one, other in pairwise(videos))
    assert changes == 1
    assert [len(samples) for _, samples in dataset.videos()] == [videos.count(video) for video in dict.fromkeys(videos)]


def test_expressions_about_one_object_share_its_id_and_ground_truth(tmp_path: Path) -> None:
    layouts.write_refcoco(tmp_path)
    first, second, *_ = read(tmp_path).samples
    assert first.object_ids == second.object_ids
    assert first.ground_truth is second.ground_truth


def test_overlapping_polygons_of_an_object_are_united(tmp_path: Path) -> None:
    layouts.write_refcoco(tmp_path, splits=("val",))
    square, wide = [2, 2, 6, 2, 6, 6, 2, 6], [4, 4, 12, 4, 12, 8, 4, 8]
    line = [0, 0, 30, 30]  # two points enclose nothing

    def redraw(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation["segmentation"] = [line, square, wide]

    change_json(tmp_path / "refcoco" / "instances.json", redraw)
    ground_truth = read(tmp_path).samples[0].ground_truth
    assert ground_truth is not None
    expected = np.zeros(layouts.SIZE, bool)
    expected[2:6, 2:6] = expected[4:8, 4:12] = True
    assert np.array_equal(ground_truth.mask(0), expected)


def test_non_ascii_text_of_python_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(layouts.python2_pickle([{"raw": "caf\xe9", "ids": [1, 2**40], "box": (0.5, None, True)}]))
    assert b"caf\xe9" in path.read_bytes()
    assert read_plain_pickle(path) == [{"raw": "caf\xe9", "ids": [1, 2**40], "box": (0.5, None, True)}]


class Malicious:
    """Object that runs a command when unpickled by ``pickle``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path: Path, protocol: int) -> None:
    layouts.write_refcoco(tmp_path)
    path = tmp_path / "refcoco" / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"split": "val"}, Malicious(f"touch '{tmp_path}/run'")], protocol=protocol))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p.*posix\.system"):
        read(tmp_path)
    assert not (tmp_path / "run").exists()
    pickle.loads(path.read_bytes())  # the code does work
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [np.float64(1), set, Path("x"), print], ids=str)
def test_a_pickle_with_anything_but_plain_data_is_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([value], protocol=2))
    with pytest.raises(DataError, match=r"refs\.p .*code"):
        read_plain_pickle(path)


def change_refs(root: Path, change: Callable[[Any], Any]) -> None:
    path = root / "refcoco" / "refs(unc).p"
    refs = read_plain_pickle(path)
    change(refs)
    path.write_bytes(layouts.python2_pickle(refs))


def first_image(root: Path) -> Path:
    """Return the file of the first image of the split ``val``."""
    image = read(root).samples[0].video
    return root / IMAGES / f"COCO_train2014_{int(image.id):012d}.jpg"


def remove_image(root: Path) -> str:
    path = first_image(root)
    path.unlink()
    return path.name


def spoil_image(root: Path) -> str:
    path = first_image(root)
    path.write_bytes(b"no image at all")
    return path.name


def cut_image(root: Path) -> str:
    path = first_image(root)
    path.write_bytes(path.read_bytes()[:600])
    return path.name


def resize_mask(root: Path) -> str:
    segmentation = {"size": [9, 9], "counts": [81]}
    change_json(
        root / "refcoco" / "instances.json",
        lambda content: [annotation.update(segmentation=segmentation) for annotation in content["annotations"]],
    )
    return "instances.json"


def spoil_polygon(root: Path) -> str:
    change_json(
        root / "refcoco" / "instances.json",
        lambda content: [annotation.update(segmentation=[[1, 2, 3]]) for annotation in content["annotations"]],
    )
    return "instances.json"


def repeat_sentence(root: Path) -> str:
    def change(refs: Any) -> None:
        for ref in refs:
            ref["sentences"][-1]["sent_id"] = ref["sentences"][0]["sent_id"]

    change_refs(root, change)
    return "instances.json"


def repeat_annotation(root: Path) -> str:
    change_json(
        root / "refcoco" / "instances.json", lambda content: content["annotations"].extend(content["annotations"])
    )
    return "instances.json"


def lose_annotations(root: Path) -> str:
    change_json(root / "refcoco" / "instances.json", lambda content: content["annotations"].clear())
    return "instances.json"


def lose_image_entries(root: Path) -> str:
    change_json(root / "refcoco" / "instances.json", lambda content: content["images"].clear())
    return "instances.json"


def add_comma(root: Path) -> str:
    path = root / "refcoco" / "instances.json"
    path.write_text(path.read_text()[:-1] + ",}")
    return "instances.json"


def break_pickle(root: Path) -> str:
    path = root / "refcoco" / "refs(unc).p"
    path.write_bytes(path.read_bytes()[:-30])
    return "refs(unc).p"


def drop_sentence_text(root: Path) -> str:
    change_refs(root, lambda refs: [sentence.pop("sent") for ref in refs for sentence in ref["sentences"]])
    return "refs(unc).p"


def hold_no_list(root: Path) -> str:
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps({"refs": 1}))
    return "refs(unc).p"


def drop_instances(root: Path) -> str:
    (root / "refcoco" / "instances.json").unlink()
    return "instances.json"


def make_image_huge(root: Path) -> str:
    change_json(
        root / "refcoco" / "instances.json",
        lambda content: [image.update(height=10**9) for image in content["images"]],
    )
    return "instances.json"


@pytest.mark.parametrize(
    "mutate",
    [
        remove_image,
        spoil_image,
        cut_image,
        resize_mask,
        spoil_polygon,
        repeat_sentence,
        repeat_annotation,
        lose_annotations,
        lose_image_entries,
        add_comma,
        break_pickle,
        drop_sentence_text,
        hold_no_list,
        drop_instances,
        make_image_huge,
    ],
)
def test_damage_is_reported_in_one_sentence_that_names_the_file(tmp_path: Path, mutate: Callable[[Path], str]) -> None:
    layouts.write_refcoco(tmp_path)
    read_everything(read(tmp_path))
    name = mutate(tmp_path)
    sentence = refusal(lambda: read_everything(read(tmp_path)))
    assert name in sentence
    assert str(tmp_path) in sentence


def test_boxes_without_masks_are_refused(tmp_path: Path) -> None:
    layouts.write_converted_refcoco(tmp_path)
    file = tmp_path / "refcoco" / "instances_refcoco_val.json"
    change_json(file, lambda content: [annotation.pop("segmentation") for annotation in content["annotations"]])
    with pytest.raises(DataError, match=r"instances_refcoco_val\.json.*box"):
        read(tmp_path)


def test_a_converted_expression_without_an_annotation_is_refused(tmp_path: Path) -> None:
    layouts.write_converted_refcoco(tmp_path)
    file = tmp_path / "refcoco" / "instances_refcoco_val.json"
    change_json(file, lambda content: content["annotations"].pop())
    with pytest.raises(DataError, match=r"instances_refcoco_val\.json has no annotation"):
        read(tmp_path)


def test_collected_problems_do_not_affect_other_samples(tmp_path: Path) -> None:
    written = layouts.write_refcoco(tmp_path)
    (path,) = [tmp_path / IMAGES / f"COCO_train2014_{318219:012d}.jpg"]
    path.unlink()
    change_refs(tmp_path, lambda refs: refs[-1].pop("image_id"))
    problems = Problems(keep_going=True)
    dataset = read_refcoco(tmp_path, "train", problems)
    assert problems.found == [f"{path} is missing."]
    assert_as_written(dataset, [one for one in written if one.split == "train" and one.video != "318219"])
    problems = Problems(keep_going=True)
    read_refcoco(tmp_path, "testB", problems)
    assert len(problems.found) == 1
    assert "refs(unc).p" in problems.found[0]


def test_an_unknown_split_is_refused_with_a_list_of_the_splits(tmp_path: Path) -> None:
    layouts.write_refcoco(tmp_path)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p.*testA, testB, train, val"):
        read(tmp_path, "test")
    with pytest.raises(DataError, match=r"refs\(google\)\.p"):
        read(tmp_path, "google:val")


def test_missing_images_are_reported_with_the_expected_folders(tmp_path: Path) -> None:
    layouts.write_refcoco(tmp_path, images="elsewhere")
    with pytest.raises(DataError, match="train2014"):
        read(tmp_path)


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    layouts.write_refcoco(tmp_path, splits=("val", "val"))
    rng = np.random.default_rng(5)
    image = first_image(tmp_path)
    for path in (tmp_path / "refcoco" / "refs(unc).p", tmp_path / "refcoco" / "instances.json", image):
        whole = path.read_bytes()
        for length in [0, 1, *rng.integers(2, len(whole) - 2, 25).tolist()]:
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=path.stem.split("(")[0]):
                read_everything(read(tmp_path))
        path.write_bytes(whole)
    read_everything(read(tmp_path))


def test_a_data_set_can_be_pickled(tmp_path: Path) -> None:
    written = layouts.write_refcoco(tmp_path)
    assert_as_written(pickle.loads(pickle.dumps(read(tmp_path))), [one for one in written if one.split == "val"])


def test_opening_decodes_neither_masks_nor_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_refcoco(tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("refervos.data.layouts.refcoco.decode_segmentations", refuse)
    monkeypatch.setattr("refervos.data.frames.read_frame", refuse)
    assert len(read(tmp_path))
