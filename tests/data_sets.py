"""A small data set of every layout, and checks that the tests of data sets share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layouts
import layouts_conversations
import layouts_images
from layouts_images import Written
from refervos.data.layouts.revos import RevosGroundTruth
from refervos.data.sample import Dataset
from refervos.errors import DataError

SHORT: Any = {"videos": 1, "frames": 3}

SMALL_DATA_SETS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "mevis": ("valid_u", partial(layouts.write_mevis, split="valid_u", **SHORT)),
    "ref-youtube-vos": ("train", partial(layouts.write_ref_youtube_vos, split="train", **SHORT)),
    "ref-davis17": ("val", partial(layouts.write_ref_davis17, split="val", **SHORT)),
    "revos": ("valid", partial(layouts.write_revos, split="valid", **SHORT)),
    "long-rvos": ("valid", partial(layouts.write_long_rvos, split="valid", **SHORT)),
    "a2d-sentences": ("test", partial(layouts.write_a2d_sentences, split="test", videos=1, frames=4)),
    "jhmdb-sentences": ("test", partial(layouts.write_jhmdb_sentences, videos=1)),
    "refcoco": ("val", partial(layouts_images.write_refcoco, splits=("train", "val"))),
    "refcoco+": ("val", partial(layouts_images.write_refcoco, name="refcoco+", splits=("train", "val"))),
    "refcocog": (
        "val",
        partial(layouts_images.write_refcoco, name="refcocog", splits=("train", "val"), partition="umd"),
    ),
    "grefcoco": ("val", partial(layouts_images.write_grefcoco, splits=("train", "val"))),
    "json-lines": ("all", layouts_images.write_json_lines),
    "coco-video": ("train", layouts_images.write_coco_video),
    "cvat": ("all", layouts_images.write_cvat),
    "vidstg": ("test", partial(layouts_conversations.write_vidstg, videos=1)),
    "hc-stvg": ("val", partial(layouts_conversations.write_hcstvg, videos=1)),
    "hc-stvg1": ("test", partial(layouts_conversations.write_hcstvg, split="test", version=1, videos=1)),
    "gcg": ("test", partial(layouts_conversations.write_gcg, **SHORT)),
    "video-gcg": ("test", partial(layouts_conversations.write_video_gcg, **SHORT)),
    "mevis-gcg": ("valid_u", partial(layouts_conversations.write_mevis_gcg, **SHORT)),
    "vidstg-gcg": ("val", partial(layouts_conversations.write_segmented_gcg, name="vidstg_gcg", **SHORT)),
    "hcstvg-gcg": ("val", partial(layouts_conversations.write_segmented_gcg, name="hcstvg_gcg", **SHORT)),
    "ytvos-gcg": ("train", partial(layouts_conversations.write_ytvos_gcg, **SHORT)),
    "anet-gcg": ("train", partial(layouts_conversations.write_anet_gcg, **SHORT)),
}
"""Split and writer of a small data set, by benchmark name; every benchmark must be listed."""


def read_everything(dataset: Dataset) -> int:
    """Read every frame, mask, void mask and foreground, check shapes and types, and return the number of masks."""
    masks = 0
    for video, samples in dataset.videos():
        for index in range(len(video)):
            frame = video.frames.read(index)
            assert (frame.ndim, frame.dtype) == (3, np.uint8)
        for sample in samples:
            ground_truth = sample.ground_truth
            for index in () if ground_truth is None else ground_truth.annotated:
                assert ground_truth is not None
                mask, void = ground_truth.mask(index), ground_truth.void(index)
                assert (mask.ndim, mask.dtype) == (2, np.bool_)
                assert void is None or void.shape == mask.shape
                if isinstance(ground_truth, RevosGroundTruth):
                    assert ground_truth.foreground(index).shape == mask.shape
                masks += 1
    return masks


def refusal(read: Callable[[], object]) -> str:
    """Return the message of the ``DataError`` that a read raises, which must be one printable sentence."""
    with pytest.raises(DataError) as caught:
        read()
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert sentence.isprintable()
    return sentence


def assert_as_written(
    dataset: Dataset, written: Sequence[Written], size: tuple[int, int] = layouts_images.SIZE
) -> None:
    """Check that a data set has exactly the written expressions and masks."""
    by_key = {(one.video, one.id): one for one in written}
    assert [sample.key for sample in dataset.samples] == list(by_key)
    for sample in dataset.samples:
        one = by_key[sample.key]
        assert sample.expression == one.text
        assert sample.video.frames.read(0).shape == (*layouts_images.SIZE, 3)
        if one.masks is None:
            assert (sample.ground_truth, sample.has_target) == (None, None)
            continue
        assert sample.ground_truth is not None
        masks = [sample.ground_truth.mask(index) for index in sample.ground_truth.annotated]
        assert np.array_equal(masks, one.masks)
        assert all(mask.dtype == np.bool_ for mask in masks)
        assert sample.has_target == one.masks.any()
        assert sample.ground_truth.void(sample.ground_truth.annotated[0]) is None
