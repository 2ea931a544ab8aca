"""Scene cuts and repeated frames on synthetic clips with known scene boundaries."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from refervos.errors import FrameError
from refervos.session.scene_changes import Change, FrameChanges
from refervos.worlds import BACKGROUNDS, WorldConfig, draw_clip

Clip = np.ndarray
"""uint8 (T, H, W, 3)."""

Disturbance = Callable[[Clip, np.random.Generator], Clip]


def as_frame(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def changes_of(images: list[np.ndarray] | Clip) -> list[Change]:
    detector = FrameChanges()
    return [detector.update(as_frame(image)) for image in images]


def cuts_of(images: list[np.ndarray] | Clip) -> list[int]:
    return [index for index, change in enumerate(changes_of(images)) if change.cut]


@cache
def synthetic_clips(count: int) -> list[Clip]:
    """Draw clips, grouped by style of background, some of them with camera motion."""
    per_style = -(-count // len(BACKGROUNDS))
    return [
        draw_clip((31, index + 1), WorldConfig(frames=24, backgrounds=(style,), pan=0.3)).frames
        for style in BACKGROUNDS
        for index in range(per_style)
    ][:count]


# Disturbances within a scene.


def as_drawn(clip: Clip, rng: np.random.Generator) -> Clip:
    return clip


def panned(clip: Clip, rng: np.random.Generator) -> Clip:
    """Pan the camera, by up to 6 % of the width per frame."""
    speed = rng.uniform(0.02, 0.06) * clip.shape[2] * rng.choice([-1, 1])
    return np.stack([np.roll(image, round(speed * time), axis=1) for time, image in enumerate(clip)])


def shaken(clip: Clip, rng: np.random.Generator) -> Clip:
    """Shake the camera from frame to frame, at times by a tenth of the width."""
    jumps = rng.normal(0, 0.04 * clip.shape[2], (len(clip), 2)).round().astype(int)
    return np.stack([np.roll(image, tuple(jump), axis=(0, 1)) for image, jump in zip(clip, jumps, strict=True)])


def flickering(clip: Clip, rng: np.random.Generator) -> Clip:
    gain, lift = rng.uniform(0.75, 1.25, len(clip)), rng.uniform(-15, 15, len(clip))
    return np.clip(clip * gain[:, None, None, None] + lift[:, None, None, None], 0, 255).astype(np.uint8)


def noisy(clip: Clip, rng: np.random.Generator) -> Clip:
    return np.clip(clip + rng.normal(0, 10, clip.shape), 0, 255).astype(np.uint8)


def compressed(clip: Clip, rng: np.random.Generator) -> Clip:
    """Compress each frame as a JPEG of random quality, from 15 to 60."""
    images = []
    for image in clip:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(15, 61)))
        images.append(np.array(Image.open(file)))
    return np.stack(images)


def crossed(clip: Clip, rng: np.random.Generator) -> Clip:
    """Move a chequered disc of up to half the frame's area through the scene."""
    frames, height, width = clip.shape[:3]
    radius = rng.uniform(0.28, 0.4) * width
    y, x = np.mgrid[:height, :width]
    chequers = (x // 10 + y // 10) % 2
    colours = rng.uniform(0, 255, (2, 3)).astype(np.uint8)
    crossed = clip.copy()
    for time in range(frames):
        centre = -radius + (width + 2 * radius) * time / (frames - 1)
        disc = (x - centre) ** 2 + (y - height / 2) ** 2 < radius**2
        crossed[time][disc] = colours[chequers[disc]]
    return crossed


def overexposed(clip: Clip, rng: np.random.Generator) -> Clip:
    """Brighten one frame by 60 to 140 grey levels, so that much of it is white."""
    flashed = clip.copy()
    flashed[12] = np.clip(flashed[12].astype(int) + rng.integers(60, 141), 0, 255)
    return flashed


def whitened(clip: Clip, rng: np.random.Generator) -> Clip:
    """Replace one frame by an all-white flash."""
    flashed = clip.copy()
    flashed[12] = np.clip(250 + rng.normal(0, 2, clip.shape[1:]), 0, 255)
    return flashed


def darkened(clip: Clip, rng: np.random.Generator) -> Clip:
    """Darken three frames almost to black."""
    dark = clip.copy()
    dark[10:13] = np.clip(rng.normal(4, 2, dark[10:13].shape), 0, 255)
    return dark


def found(clips: list[Clip], disturb: Disturbance) -> tuple[int, int]:
    """Count the cuts detected at scene boundaries, and elsewhere."""
    rng = np.random.default_rng(5)
    hits = false = 0
    detector = FrameChanges()
    for clip in clips:
        first, *others = (detector.update(as_frame(image)).cut for image in disturb(clip, rng))
        hits += first
        false += sum(others)
    return hits, false


HARMLESS: list[Disturbance] = [as_drawn, panned, shaken, flickering, noisy, compressed, crossed]


@pytest.mark.parametrize("disturb", HARMLESS)
def test_every_scene_boundary_is_a_cut_and_no_other_frame_is(disturb: Disturbance) -> None:
    assert found(synthetic_clips(24), disturb) == (23, 0)


@pytest.mark.parametrize("disturb", [whitened, darkened])
def test_white_and_dark_frames_are_no_cuts(disturb: Disturbance) -> None:
    assert found(synthetic_clips(24), disturb) == (23, 0)


def test_an_overexposed_frame_is_rarely_a_cut() -> None:
    hits, false = found(synthetic_clips(24), overexposed)
    assert hits == 23
    assert false <= 10  # of 48 changes into and out of overexposure; 58 of 400 in the 200 clips below


@pytest.mark.slow
def test_error_rates_on_two_hundred_clips() -> None:
    """Prints the figures of the documentation: ``pytest -s -m slow tests/test_scene_changes.py``."""
    clips = synthetic_clips(200)
    frames = sum(len(clip) - 1 for clip in clips)
    print()
    for disturb in [*HARMLESS, whitened, darkened, overexposed]:
        hits, false = found(clips, disturb)
        print(f"{disturb.__name__}: {hits} of {len(clips) - 1} boundaries, {1000 * false / frames:.2f} false per 1000")
        assert hits >= 0.98 * (len(clips) - 1)
        assert false <= (0.001 if disturb in HARMLESS else 0.03) * frames


def test_the_first_frame_is_neither_a_cut_nor_a_repeat() -> None:
    assert changes_of([synthetic_clips(24)[0][0]]) == [Change(cut=False, repeated=False, difference=0.0)]


@pytest.mark.parametrize("size", [(96, 128), (360, 640), (40, 40)])
def test_a_change_of_resolution_is_no_cut(size: tuple[int, int]) -> None:
    for clip in synthetic_clips(24):
        smaller = np.array(Image.fromarray(clip[1]).resize(size[::-1]))
        after = changes_of([clip[0], smaller])[1]
        assert not after.cut
        assert not after.repeated


def fade(before: Clip, after: Clip) -> list[np.ndarray]:
    """Fade out over eight frames, two black ones, and fade in over eight, with four full frames at each end."""
    light = [*[1.0] * 4, *np.linspace(7 / 8, 0, 8), 0, 0, *np.linspace(1 / 8, 1, 8), *[1.0] * 4]
    images = [*before[:12], *after[:14]]
    return [(image * level).astype(np.uint8) for image, level in zip(images, light, strict=True)]


def test_a_fade_through_black_is_a_cut_when_the_new_scene_appears() -> None:
    for one, other in pairwise(synthetic_clips(24)):
        (cut,) = cuts_of(fade(one, other))
        assert 14 <= cut <= 18


def test_a_fade_to_black_and_back_to_the_same_scene_is_rarely_a_cut() -> None:
    assert sum(len(cuts_of(fade(clip, clip[10:]))) for clip in synthetic_clips(24)) <= 2


def test_a_single_foreign_frame_is_two_cuts() -> None:
    one, other = synthetic_clips(24)[:2]
    assert cuts_of([*one[:10], other[0], *one[10:]]) == [10, 11]


def test_the_first_frame_after_leading_black_frames_is_no_cut() -> None:
    clip = synthetic_clips(24)[0]
    black = np.zeros_like(clip[0])
    assert cuts_of([black, black, *clip[:3]]) == []


def test_the_cut_threshold_rises_with_recent_differences() -> None:
    one, other = synthetic_clips(24)[:2]
    calm, wild = FrameChanges(usual=0.05), FrameChanges(usual=0.4)
    for detector in (calm, wild):
        detector.update(as_frame(one[0]))
    at_boundary = [detector.update(as_frame(other[0])) for detector in (calm, wild)]
    assert [change.cut for change in at_boundary] == [True, False]
    assert at_boundary[0].difference == at_boundary[1].difference
    assert calm.usual == 0.05  # a cut says nothing about motion within scenes
    assert wild.usual > 0.4


def test_only_an_exactly_equal_frame_is_a_repeat() -> None:
    clip = synthetic_clips(24)[1]
    rng = np.random.default_rng(0)
    noise = np.clip(clip[0] + rng.normal(0, 1, clip[0].shape), 0, 255).astype(np.uint8)
    changes = changes_of([clip[0], clip[0], noise, noise, clip[5], clip[0]])
    assert [change.repeated for change in changes] == [False, True, False, True, False, False]
    assert changes[1] == Change(cut=False, repeated=True, difference=0.0)


def test_a_frame_with_a_small_moving_object_is_no_repeat() -> None:
    image = np.full((1080, 1920, 3), 90, np.uint8)
    moved = image.copy()
    image[500:508, 900:908] = 200
    moved[500:508, 901:909] = 200
    assert not changes_of([image, moved])[1].repeated


def test_a_frame_that_overwrites_the_previous_one_is_still_compared_with_it() -> None:
    clip = synthetic_clips(24)[2]
    buffer = clip[0].copy()
    detector = FrameChanges()
    detector.update(as_frame(buffer))
    buffer[:] = clip[6]
    assert not detector.update(as_frame(buffer)).repeated


def test_the_memory_layout_of_frames_does_not_matter() -> None:
    clip = synthetic_clips(24)[3]
    gray = torch.from_numpy(clip[0][..., 0].copy()).expand(3, -1, -1)
    planar, gray_planar = as_frame(clip[0]).contiguous(), gray.contiguous()
    detector = FrameChanges()
    repeated = [detector.update(frame).repeated for frame in (as_frame(clip[0]), planar, gray, gray_planar)]
    assert repeated == [False, True, False, True]


def test_the_memory_of_the_detector_stays_constant() -> None:
    def kept(detector: FrameChanges) -> int:
        assert detector.rows is not None
        assert detector.picture is not None
        assert detector.rows.base is None  # no view that keeps a whole frame alive
        return detector.rows.nbytes + sum(array.nbytes for array in vars(detector.picture).values())

    detector = FrameChanges()
    sizes = set()
    for clip in synthetic_clips(24)[:6]:
        for image in clip:
            detector.update(as_frame(image))
            sizes.add(kept(detector))
    assert len(sizes) == 1
    large = FrameChanges()
    large.update(torch.zeros(3, 2160, 3840, dtype=torch.uint8).random_(0, 256))
    assert kept(large) < 2**21  # of 25 MB


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 700), (3, 700, 1)])
def test_repeats_are_detected_at_any_size(shape: tuple[int, int, int]) -> None:
    detector = FrameChanges()
    frame = torch.full(shape, 7, dtype=torch.uint8)
    assert [detector.update(frame).repeated, detector.update(frame).repeated, detector.update(frame + 1).repeated] == [
        0,
        1,
        0,
    ]


@pytest.mark.parametrize(
    "frame",
    [torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(3, 4, 4), torch.zeros(3, 0, 4, dtype=torch.uint8)],
)
def test_invalid_frames_are_refused(frame: Tensor) -> None:
    with pytest.raises(FrameError, match=r"it must be uint8 \(3, height, width\)"):
        FrameChanges().update(frame)
