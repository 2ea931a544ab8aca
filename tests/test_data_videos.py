"""Every video benchmark is read from its published layout, with exact expressions and masks."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layouts import (
    A2D_ANNOTATED,
    DAVIS_VIDEOS,
    DAVIS_VOID,
    JHMDB_SCORED,
    WRITERS,
    change_json,
    davis_text,
    drawn_videos,
    write_a2d_sentences,
    write_jhmdb_sentences,
    write_long_rvos,
    write_mevis,
    write_ref_davis17,
    write_ref_youtube_vos,
    write_revos,
)
from refervos.data.catalogue import BENCHMARKS, open_dataset
from refervos.data.frames import VideoDecoder, VideoFileFrames, require_frame_size
from refervos.data.ground_truth import IndexedMasks
from refervos.data.layouts.revos import RevosGroundTruth
from refervos.data.sample import Dataset, Sample
from refervos.errors import ConfigError, DataError
from refervos.video import open_source
from test_video_colours import write_anamorphic


def masks_of(sample: Sample) -> np.ndarray:
    """Return all annotated masks of a sample, bool (T, H, W)."""
    assert sample.ground_truth is not None
    return np.stack([sample.ground_truth.mask(index) for index in sample.ground_truth.annotated])


def test_mevis_has_expressions_with_several_targets_and_without_target(tmp_path: Path) -> None:
    dataset = open_dataset("mevis", write_mevis(tmp_path), "valid_u")
    drawn = drawn_videos("valid_u")
    assert [sample.key for sample in dataset.samples] == [(one.id, str(k)) for one in drawn for k in range(4)]
    for sample, (one, k) in zip(dataset.samples, [(one, k) for one in drawn for k in range(4)], strict=True):
        assert sample.expression == one.expressions[k].text
        assert sample.has_target == bool(one.expressions[k].targets)
        assert len(sample.object_ids) == len(one.expressions[k].targets)
        np.testing.assert_array_equal(masks_of(sample), one.masks(k))
    assert dataset.samples[0].video is dataset.samples[3].video
    assert list(dataset.samples[0].video.frames.names) == [f"{index:05d}" for index in range(6)]
    shown = dataset.samples[0].video.frames.read(2).astype(int)
    assert np.abs(shown - drawn[0].clip.frames[2]).mean() < 10


def test_mevis_valid_has_no_ground_truth(tmp_path: Path) -> None:
    for sample in open_dataset("mevis", write_mevis(tmp_path, "valid"), "valid").samples:
        assert (sample.ground_truth, sample.has_target, sample.object_ids) == (None, None, ())


def test_mevis_train_without_its_masks_is_refused(tmp_path: Path) -> None:
    write_mevis(tmp_path, "train")
    (tmp_path / "train/mask_dict.json").unlink()
    with pytest.raises(DataError, match=r"mask_dict\.json"):
        open_dataset("mevis", tmp_path, "train")


def test_ref_youtube_vos_train_reads_objects_by_palette_index(tmp_path: Path) -> None:
    dataset = open_dataset("ref-youtube-vos", write_ref_youtube_vos(tmp_path), "train")
    for (video, samples), one in zip(dataset.videos(), drawn_videos("train"), strict=True):
        assert list(video.frames.names)[:3] == ["00000", "00005", "00010"]
        for k, sample in enumerate(samples):
            assert sample.object_ids == (str(one.expressions[k].targets[0] + 1),)
            np.testing.assert_array_equal(masks_of(sample), one.masks(k))


def test_ref_youtube_vos_valid_excludes_the_videos_of_test(tmp_path: Path) -> None:
    write_ref_youtube_vos(tmp_path, "valid")
    for split in ("valid", "test"):
        dataset = open_dataset("ref-youtube-vos", tmp_path, split)
        assert [video.id for video, _ in dataset.videos()] == [one.id for one in drawn_videos(split)]
        assert {sample.ground_truth for sample in dataset.samples} == {None}
    (tmp_path / "meta_expressions/test/meta_expressions.json").unlink()
    dataset = open_dataset("ref-youtube-vos", tmp_path, "valid")
    assert [video.id for video, _ in dataset.videos()] == [one.id for one in drawn_videos("valid")]


@pytest.mark.parametrize("converted", [False, True])
def test_ref_davis17_has_four_annotators_per_object(tmp_path: Path, converted: bool) -> None:
    dataset = open_dataset("ref-davis17", write_ref_davis17(tmp_path, converted=converted), "val")
    assert [video.id for video, _ in dataset.videos()] == list(DAVIS_VIDEOS["val"][:2])
    for (_, samples), one in zip(dataset.videos(), drawn_videos("val"), strict=True):
        assert [sample.expression_id for sample in samples] == [str(k) for k in range(8)]
        assert [sample.annotator for sample in samples] == ["0", "1", "2", "3"] * 2
        assert [sample.kind for sample in samples] == ["first frame", "full video"] * 4
        for k, sample in enumerate(samples):
            expression = one.expressions[k // 4]
            assert sample.expression == davis_text(k % 4, expression)
            assert sample.object_ids == (str(expression.targets[0] + 1),)
            target = one.masks(k // 4).copy()
            target[:, *DAVIS_VOID] = False
            np.testing.assert_array_equal(masks_of(sample), target)
            assert isinstance(sample.ground_truth, IndexedMasks)
            void = sample.ground_truth.void(0)
            assert void is not None
            assert void.sum() == void[DAVIS_VOID].sum() == 9
            assert set(np.unique(sample.ground_truth.numbers(5))) <= {*range(len(one.clip.masks) + 1), 255}


def test_ref_davis17_corrects_misspelt_video_names(tmp_path: Path) -> None:
    write_ref_davis17(tmp_path, "train", videos=4)
    assert "clasic-car" in (tmp_path / "davis_text_annotations/Davis17_annot1.txt").read_text()
    dataset = open_dataset("ref-davis17", tmp_path, "train")
    assert [video.id for video, _ in dataset.videos()] == list(DAVIS_VIDEOS["train"])


def test_ref_davis17_reads_semi_supervised_masks_when_there_are_no_others(tmp_path: Path) -> None:
    write_ref_davis17(tmp_path)
    (tmp_path / "DAVIS/Annotations_unsupervised").rename(tmp_path / "DAVIS/Annotations")
    assert len(open_dataset("ref-davis17", tmp_path)) == 16


def test_ref_davis17_requires_every_annotator_for_every_object(tmp_path: Path) -> None:
    write_ref_davis17(tmp_path)
    file = tmp_path / "davis_text_annotations/Davis17_annot2.txt"
    file.write_bytes(b"\n".join(file.read_bytes().split(b"\n")[1:]))
    with pytest.raises(DataError, match=r"Davis17_annot2\.txt has no expression about object \d of blackswan"):
        open_dataset("ref-davis17", tmp_path)


def test_converted_ref_davis17_requires_four_expressions_in_a_row_per_object(tmp_path: Path) -> None:
    write_ref_davis17(tmp_path, converted=True)
    file = tmp_path / "meta_expressions/valid/meta_expressions.json"
    change_json(file, lambda content: content["videos"]["blackswan"]["expressions"]["5"].update(obj_id="9"))
    with pytest.raises(DataError, match="blackswan"):
        open_dataset("ref-davis17", tmp_path)


def test_revos_has_kinds_and_a_foreground(tmp_path: Path) -> None:
    write_revos(tmp_path, "train")
    dataset = open_dataset("revos", write_revos(tmp_path, "valid"), "valid")
    for (video, samples), one in zip(dataset.videos(), drawn_videos("valid"), strict=True):
        assert (video.id, video.size) == (f"UVO/all/{one.id}", (48, 64))
        assert [sample.kind for sample in samples] == ["referring", "reasoning", "referring", "hallucination"]
        for k, sample in enumerate(samples):
            np.testing.assert_array_equal(masks_of(sample), one.masks(k))
            assert isinstance(sample.ground_truth, RevosGroundTruth)
            np.testing.assert_array_equal(sample.ground_truth.foreground(3), one.clip.masks[:, 3].any(axis=0))


def test_a_missing_foreground_of_revos_is_refused_when_it_is_read(tmp_path: Path) -> None:
    write_revos(tmp_path)
    (tmp_path / "mask_dict_foreground.json").unlink()
    ground_truth = open_dataset("revos", tmp_path).samples[0].ground_truth
    assert isinstance(ground_truth, RevosGroundTruth)
    assert ground_truth.mask(0).shape == (48, 64)
    with pytest.raises(DataError, match=r"mask_dict_foreground\.json"):
        ground_truth.foreground(0)


def test_a_frame_in_mask_dict_may_have_several_run_length_masks(tmp_path: Path) -> None:
    write_mevis(tmp_path)
    sample = open_dataset("mevis", tmp_path).samples[0]
    other = open_dataset("mevis", tmp_path).samples[1]
    file = tmp_path / "valid_u/mask_dict.json"

    def join(content: dict) -> None:
        content[sample.object_ids[0]][5] = [content[sample.object_ids[0]][5], content[other.object_ids[0]][5]]

    change_json(file, join)
    joined = masks_of(open_dataset("mevis", tmp_path).samples[0])[5]
    np.testing.assert_array_equal(joined, masks_of(sample)[5] | masks_of(other)[5])


def test_long_rvos_reads_a_missing_mask_as_empty(tmp_path: Path) -> None:
    dataset = open_dataset("long-rvos", write_long_rvos(tmp_path), "valid")
    for (_, samples), one in zip(dataset.videos(), drawn_videos("valid"), strict=True):
        assert [sample.kind for sample in samples] == ["static", "dynamic", "hybrid"] * 2
        for k, sample in enumerate(samples):
            np.testing.assert_array_equal(masks_of(sample), one.masks(k // 3))
    object_id = dataset.samples[0].object_ids[0]
    (tmp_path / f"valid/Annotations/valid00/{object_id}/00005.png").unlink()
    masks = masks_of(open_dataset("long-rvos", tmp_path, "valid").samples[0])
    np.testing.assert_array_equal(masks[:5], drawn_videos("valid")[0].masks(0)[:5])
    assert drawn_videos("valid")[0].masks(0)[5].any()
    assert not masks[5].any()


def test_long_rvos_test_has_no_ground_truth(tmp_path: Path) -> None:
    samples = open_dataset("long-rvos", write_long_rvos(tmp_path, "test"), "test").samples
    assert {(sample.ground_truth, sample.has_target) for sample in samples} == {(None, None)}
    assert {sample.kind for sample in samples} == {"static", "dynamic", "hybrid"}


@pytest.mark.parametrize("images", [False, True])
def test_a2d_sentences_annotates_the_frames_that_show_the_instance(tmp_path: Path, images: bool) -> None:
    write_a2d_sentences(tmp_path, "train", images=images)
    dataset = open_dataset("a2d-sentences", write_a2d_sentences(tmp_path, "test", images=images), "test")
    assert {video.id for video, _ in dataset.videos()} == {one.id for one in drawn_videos("test")}
    for (video, samples), one in zip(dataset.videos(), drawn_videos("test"), strict=True):
        assert len(video) == 6
        for k, sample in enumerate(samples):
            assert sample.expression == f"{one.expressions[k].text}, moving"
            assert sample.expression_id == str(one.expressions[k].targets[0] + 1)
            visible = [index for index in A2D_ANNOTATED if one.masks(k)[index].any()]
            assert sample.ground_truth is not None
            assert list(sample.ground_truth.annotated) == visible
            np.testing.assert_array_equal(masks_of(sample), one.masks(k)[visible])


def test_a2d_sentences_reads_a_two_dimensional_mask_of_a_single_instance(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_a2d_sentences(tmp_path)
    sample = open_dataset("a2d-sentences", tmp_path).samples[0]
    target = drawn_videos("test")[0].masks(0)[1]
    path = tmp_path / "text_annotations/a2d_annotation_with_instances/test00/00002.h5"
    with h5py.File(path, "w") as file:
        file["instance"] = np.array([[int(sample.expression_id)]], np.float64)
        file["reMask"] = target.T.astype(np.uint8)
    assert sample.ground_truth is not None
    np.testing.assert_array_equal(sample.ground_truth.mask(1), target)


def test_a2d_sentences_leaves_out_the_known_mistake(tmp_path: Path) -> None:
    write_a2d_sentences(tmp_path)
    with (tmp_path / "text_annotations/a2d_annotation.txt").open("a") as file:
        file.write("test00,1 (copy),a mistake\n")
    assert len(open_dataset("a2d-sentences", tmp_path)) == 4


@pytest.mark.parametrize("scored", [False, True])
def test_jhmdb_sentences_annotates_the_listed_frames_or_all_with_masks(tmp_path: Path, scored: bool) -> None:
    dataset = open_dataset("jhmdb-sentences", write_jhmdb_sentences(tmp_path, scored=scored), "test")
    for sample, one in zip(dataset.samples, drawn_videos("jhmdb"), strict=True):
        assert sample.key == (one.id, "0")
        assert sample.ground_truth is not None
        indices = list(JHMDB_SCORED) if scored else list(range(5))
        assert list(sample.ground_truth.annotated) == indices
        np.testing.assert_array_equal(masks_of(sample), one.masks(0)[indices])
        np.testing.assert_array_equal(sample.video.frames.read(2), one.clip.frames[2])


def test_masks_are_not_cached(tmp_path: Path) -> None:
    """Cached masks would fill the memory."""
    write_ref_youtube_vos(tmp_path)
    sample = open_dataset("ref-youtube-vos", tmp_path, "train").samples[0]
    before = masks_of(sample)
    for path in (tmp_path / "train/Annotations").rglob("*.png"):
        Image.fromarray(np.full((48, 64), int(sample.object_ids[0]), np.uint8)).save(path)
    assert not before.all()
    assert masks_of(sample).all()


def test_an_unknown_data_set_or_split_is_refused_with_a_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'mvis' is unknown.*mevis.*ref-davis17.*refcoco"):
        open_dataset("mvis", tmp_path)
    with pytest.raises(ConfigError, match=r"no split 'val'; choose from train, valid_u, valid, test"):
        open_dataset("mevis", tmp_path, "val")
    with pytest.raises(DataError, match="nowhere"):
        open_dataset("mevis", tmp_path / "nowhere")


def test_every_reader_in_the_catalogue_exists() -> None:
    import importlib

    for name, benchmark in BENCHMARKS.items():
        module = importlib.import_module(f"refervos.data.layouts.{benchmark.module}")
        assert callable(getattr(module, benchmark.reader)), name
        assert benchmark.default_split in benchmark.splits


@pytest.mark.parametrize("name", WRITERS)
def test_every_written_split_is_found(tmp_path: Path, name: str) -> None:
    write: Callable[..., Path] = WRITERS[name]
    folder = write(tmp_path)
    assert BENCHMARKS[name].splits_in(folder)
    for split in BENCHMARKS[name].splits_in(folder):
        if name != "a2d-sentences" or split == "test":  # its splits are in the same files
            dataset: Dataset = open_dataset(name, folder, split)
            assert dataset.split == split
            assert len(dataset) > 0


def test_videos_with_non_square_pixels_are_read_at_the_stored_size_of_their_annotations(tmp_path: Path) -> None:
    path = write_anamorphic(tmp_path / "v.mp4", Fraction(4, 3))
    with open_source(path) as shown:
        assert next(iter(shown)).image.shape == (48, 85, 3)
    frames = VideoFileFrames(path, VideoDecoder())
    assert require_frame_size(frames, 0, (48, 64), "the annotations") == (48, 64)
    assert [frames.read(index).shape for index in range(len(frames.names))] == [(48, 64, 3)] * 3
