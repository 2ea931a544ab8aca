"""Clips and sentences that the referring stages draw from benchmarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch

from refervos.data.sample import Dataset, ImageArray, Mask, Sample, Video
from refervos.errors import DataError, TrainingError
from refervos.placement import letterbox
from refervos.training.stages.clip_sources import BenchmarkClips, ReferringClip, mirror_expression, sample_times

SIDE = 64


@dataclass(frozen=True)
class NumberedFrames:
    """Frames whose grey level encodes their index, 48 pixels wide and 32 high."""

    count: int
    height: int = 32

    @property
    def names(self) -> Sequence[str]:
        return [f"{index:05d}" for index in range(self.count)]

    def read(self, index: int) -> ImageArray:
        return np.full((self.height, 48, 3), 4 * index, np.uint8)


@dataclass(frozen=True)
class Column:
    """Ground truth of eight full columns from ``left`` on in the frames of ``seen``.

    In the frames of ``voids`` the rows from 20 on of the left half are void.
    """

    left: int
    annotated: tuple[int, ...]
    seen: tuple[int, ...]
    voids: tuple[int, ...] | None = None

    def mask(self, index: int) -> Mask:
        assert index in self.annotated
        mask = np.zeros((32, 48), bool)
        mask[:, self.left : self.left + 8] = index in self.seen
        return mask

    def void(self, index: int) -> Mask | None:
        if self.voids is None:
            return None
        void = np.zeros((32, 48), bool)
        void[20:, :24] = index in self.voids
        return void


def dataset(frames: int = 20, videos: int = 3, height: int = 32) -> Dataset:
    samples = []
    for number in range(videos):
        video = Video(f"v{number}", NumberedFrames(frames, height))
        everywhere = tuple(range(frames))
        samples += [
            Sample(video, "0", "the left one", Column(0, everywhere, everywhere), has_target=True, kind="place"),
            Sample(video, "1", "the right one", Column(40, everywhere, everywhere), has_target=True),
            Sample(video, "2", "the pink one", Column(0, everywhere, ()), has_target=False),
        ]
    return Dataset("painted", "train", tuple(samples))


def clips(data: Dataset, batch: int = 4, stride: int = 8, **settings: object) -> BenchmarkClips:
    return BenchmarkClips(
        [data],
        batch,
        stride,
        placement=partial(letterbox, image_size=SIDE, short_side=SIDE),
        **settings,  # type: ignore[arg-type]
    )


def times(clip: ReferringClip) -> list[int]:
    """Read the indices of a clip's frames from their grey level."""
    grey = (clip.pixels[:, 0, 0, 0] * 0.229 + 0.485) * 63.75
    return [round(value) for value in grey.tolist()]


@pytest.mark.parametrize(
    ("sentence", "other"),
    [
        ("the bright cup on the left", "the bright cup on the right"),
        ("leftmost of the two, right behind the LEFT wall", "rightmost of the two, left behind the RIGHT wall"),
        ("Right-hand man turning leftwards", "Left-hand man turning rightwards"),
        ("a left-handed player with copyright and cleft lip", "a right-handed player with copyright and cleft lip"),
        ("righteous man who left", "righteous man who right"),
    ],
)
def test_left_and_right_are_swapped_as_whole_words(sentence: str, other: str) -> None:
    assert mirror_expression(sentence) == other
    assert mirror_expression(other) == sentence


@pytest.mark.parametrize("sampling", ["neighbours", "mixed"])
@pytest.mark.parametrize("length", [1, 5, 8, 9, 30])
def test_a_clip_contains_its_anchor(sampling: str, length: int) -> None:
    rng = np.random.default_rng(3)
    seen: Counter[int] = Counter()
    for anchor in list(range(length)) * 20:
        chosen = sample_times(anchor, length, 8, sampling, rng)  # type: ignore[arg-type]
        seen.update(chosen)
        assert len(chosen) == 8
        assert chosen == sorted(chosen)
        assert set(chosen) <= set(range(length))
        if length > 8:
            assert anchor in chosen
            assert len(set(chosen)) == 8
            if sampling == "neighbours":
                assert chosen == list(range(chosen[0], chosen[0] + 8))
            else:
                assert any(0 < abs(anchor - time) <= 3 for time in chosen)
        else:
            assert set(chosen) == set(range(length))
    assert set(seen) == set(range(length))
    assert sample_times(3, 9, 1, sampling, rng) == [3]  # type: ignore[arg-type]


def test_mixed_clips_contain_distant_frames() -> None:
    rng = np.random.default_rng(0)
    reach = {time for _ in range(200) for time in sample_times(50, 101, 8, "mixed", rng)}
    assert min(reach) < 10
    assert max(reach) > 90


def test_an_epoch_contains_every_sentence_at_every_anchor_once() -> None:
    """20 frames have 3 anchors for clips of 8: 3 videos x 3 sentences x 3 anchors."""
    source = clips(dataset(), batch=4)
    assert len(source) == 27
    orders = []
    for epoch in range(2):
        entries = [divmod(position, 4) for position in range(27 * epoch, 27 * (epoch + 1))]
        drawn = [source.draw(step, index, (0, 0, 0), 1, 1) for step, index in entries]
        contents = [(clip.expressions[0].replace("left", "right"), times(clip)[0]) for clip in drawn]
        # "left" and "right", count alike here, whichever is mirrored
        assert Counter(contents) == {
            (sentence, time): 6 if "right" in sentence else 3
            for sentence in ("the right one", "the pink one")
            for time in (0, 8, 16)
        }
        orders.append(contents)
    assert orders[0] != orders[1]


def test_samples_depend_on_step_index_and_key_only() -> None:
    one, other = clips(dataset()), clips(dataset())
    for step, index in ((3, 1), (0, 0), (11, 3)):
        a, b = (source.draw(step, index, (5, 0, 0), 4, 2) for source in (one, other))
        assert a.expressions == b.expressions
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.masks, b.masks)


def test_mirroring_flips_pixels_masks_and_words() -> None:
    straight, turned = (clips(dataset(), flip=flip).draw(0, 0, (1, 0, 0), 2, 2) for flip in (0.0, 1.0))
    assert {straight.frame_size, turned.frame_size} == {(42, 64)}
    for clip in (straight, turned):
        assert clip.masks.shape == (2, 2, SIDE, SIDE)
        assert not clip.masks[..., 42:, :].any()  # nothing in the padding
        for expression, masks in zip(clip.expressions, clip.masks, strict=True):
            side = {"left": masks[:, :42, :10], "right": masks[:, :42, 54:]}.get(expression.split()[1])
            assert side is None or side.all()
    assert list(map(mirror_expression, straight.expressions)) == list(turned.expressions)
    assert torch.equal(straight.masks.any(-1), turned.masks.any(-1))


def test_other_sentences_are_about_the_same_video_and_frames() -> None:
    source = clips(dataset(), flip=0.0)
    for index in range(9):
        clip = source.draw(0, index, (1, 0, 0), 2, 3)
        assert sorted(clip.expressions) == ["the left one", "the pink one", "the right one"]
        assert set(clip.families) == {"place", "all", "none"}
    again = source.draw(0, 0, (1, 0, 0), 2, 5)
    assert len(again.expressions) == 5
    assert again.expressions[:2] == again.expressions[3:]


def test_the_target_is_visible_in_nearly_every_clip() -> None:
    video = Video("v", NumberedFrames(60))
    rare = Sample(video, "0", "it", Column(0, tuple(range(60)), tuple(range(12))), has_target=True)
    source = clips(Dataset("rare", "train", (rare,)), sampling="neighbours")
    drawn = [source.draw(step, 0, (1, 0, 0), 8, 1) for step in range(40)]
    assert sum(bool(clip.masks.any()) for clip in drawn) > 30


def test_only_annotated_frames_are_drawn() -> None:
    video = Video("v", NumberedFrames(20))
    sparse = Sample(video, "0", "it", Column(0, (0, 5, 10, 15), (0, 5, 10, 15)), has_target=True)
    clip = clips(Dataset("sparse", "train", (sparse,))).draw(0, 0, (1, 0, 0), 3, 1)
    assert set(times(clip)) <= {0, 5, 10, 15}


def test_expressions_without_masks_are_left_out() -> None:
    hidden = Sample(Video("v", NumberedFrames(4)), "0", "it")
    both = Dataset("both", "train", (hidden, *dataset(frames=4, videos=1).samples))
    assert len(clips(both)) == 3
    with pytest.raises(TrainingError, match="hidden test has no masks to train on"):
        clips(Dataset("hidden", "test", (hidden,)))


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match="video 'v0': frames and masks are 48x32 and 48x40"):
        clips(dataset(videos=1, height=40)).draw(0, 0, (1, 0, 0), 2, 1)


def with_voids(*voids: int) -> Dataset:
    """One video of four frames, in some of which pixels are void for one of two sentences."""
    video, all_ = Video("v", NumberedFrames(4)), (0, 1, 2, 3)
    return Dataset(
        "painted",
        "train",
        (
            Sample(video, "0", "the left one", Column(0, all_, all_, voids), has_target=True),
            Sample(video, "1", "the right one", Column(40, all_, all_), has_target=True),
        ),
    )


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_void_pixels_are_placed_and_mirrored_like_masks(flip: float) -> None:
    source = clips(with_voids(1, 3), batch=2, stride=4, flip=flip)
    for index in range(2):
        clip = source.draw(0, index, (1, 0, 0), 4, 2)
        void, masks = clip.void, clip.masks
        assert void is not None
        assert void.shape == masks.shape == (2, 4, SIDE, SIDE)
        assert void.dtype == torch.bool
        (row,) = void.flatten(1).any(1).nonzero()[:, 0].tolist()
        assert clip.expressions[row] == (mirror_expression("the left one") if flip else "the left one")
        assert void[row].flatten(1).any(1).tolist() == [False, True, False, True]
        half = void[row, 1]
        rows, columns = (half.any(axis).nonzero()[:, 0] for axis in (1, 0))
        # Rows 20 to 31 of 32, scaled to 42 in the square; the padding below has none.
        assert (int(rows[0]), int(rows[-1])) == (26, 41)
        assert (int(columns[0]), int(columns[-1])) == ((32, 63) if flip else (0, 31))
        assert half.sum() == len(rows) * len(columns)
        assert not (void & masks).any()
        assert masks[row, 0].sum() > masks[row, 1].sum() > 0


def test_clips_without_void_pixels_have_no_void_mask() -> None:
    for data in (dataset(), with_voids()):
        assert clips(data, flip=0.0).draw(0, 0, (1, 0, 0), 2, 2).void is None


def test_void_pixels_of_another_size_are_refused() -> None:
    @dataclass(frozen=True)
    class SmallVoid(Column):
        def void(self, index: int) -> Mask | None:
            return np.ones((16, 24), bool)

    video, all_ = Video("v", NumberedFrames(4)), (0, 1, 2, 3)
    data = Dataset("painted", "train", (Sample(video, "0", "it", SmallVoid(0, all_, all_), has_target=True),))
    with pytest.raises(DataError, match="frames and masks are 24x16 and 48x32"):
        clips(data).draw(0, 0, (1, 0, 0), 2, 1)
