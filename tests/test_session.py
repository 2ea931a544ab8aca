"""Sessions: the same results for clips, steps and iterators; no state shared between sessions; bounded memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from refervos import Prompt, Segmentation, load
from refervos.errors import ConfigError, FrameError, PromptError
from refervos.pipeline import segment_frames
from refervos.samwise.model import Samwise
from refervos.video import open_source
from scenes import CAPTION, SHORT_CAPTION, bytes_kept, iou, micro_model, prompt_of, scene, session_of, stack_logits
from video_files import write_video


@pytest.fixture(scope="module")
def model() -> Samwise:
    return micro_model()


def test_clips_files_and_iterators_give_bit_identical_results(model: Samwise, tmp_path: Path) -> None:
    path = write_video(tmp_path / "scene.mp4", 19, width=128, height=96, images=scene(19))
    with open_source(path) as source:
        frames = [frame.image for frame in source]
    assert len(frames) == 19

    session = session_of(model, [CAPTION])
    by_clip = [result for start in range(0, 19, 8) for result in session.clip(frames[start : start + 8])]
    by_iterator = list(session_of(model, [CAPTION]).stream(iter(frames)))
    with open_source(path) as source:
        by_file = [result for _, result in segment_frames(source, session_of(model, [CAPTION]))]

    assert stack_logits(by_clip).std() > 0.1
    assert np.array_equal(stack_logits(by_clip), stack_logits(by_iterator))
    assert np.array_equal(stack_logits(by_clip), stack_logits(by_file))
    for one, other in zip(by_clip, by_file, strict=True):
        assert np.array_equal(one.masks, other.masks)
        assert np.array_equal(one.presence, other.presence)
        assert np.array_equal(one.switched, other.switched)
    assert [result.frame_index for result in by_file] == list(range(19))


def test_a_step_is_a_clip_of_one_frame_that_keeps_the_memory(model: Samwise) -> None:
    frames = scene(6)
    session = session_of(model, [CAPTION])
    stepped = [session.step(frame) for frame in frames]
    assert np.array_equal(
        stack_logits(stepped), stack_logits(list(session_of(model, [CAPTION]).stream(frames, clip_length=1)))
    )
    alone = [session_of(model, [CAPTION]).step(frame) for frame in frames]
    assert np.array_equal(stack_logits(stepped[:1]), stack_logits(alone[:1]))
    assert np.abs(stack_logits(stepped[1:]) - stack_logits(alone[1:])).max() > 1e-2  # memory matters
    # The released code treats a clip of one frame as an image and clears the memory.
    wiped = session_of(micro_model(protocol="published"), [CAPTION])
    assert np.array_equal(stack_logits([wiped.step(frame) for frame in frames]), stack_logits(alone))


def test_with_clips_of_one_frame_each_result_comes_before_the_next_frame_is_read(model: Samwise) -> None:
    read = []

    def frames() -> object:
        for index, frame in enumerate(scene(3)):
            read.append(index)
            yield frame

    stream = session_of(model, [CAPTION]).stream(frames(), clip_length=1)  # type: ignore[arg-type]
    for index in range(3):
        assert next(stream).frame_index == index
        assert read == list(range(index + 1))


def test_interleaved_sessions_do_not_affect_each_other(model: Samwise) -> None:
    first, second = scene(12, seed=0), scene(12, 80, 60, seed=3)
    separate = [
        list(session_of(model, [CAPTION]).stream(first)),
        list(session_of(model, [SHORT_CAPTION]).stream(second)),
    ]
    streams = [session_of(model, [CAPTION]).stream(first), session_of(model, [SHORT_CAPTION]).stream(second)]
    joint: list[list[Segmentation]] = [[], []]
    for _ in range(12):
        for kept, stream in zip(joint, streams, strict=True):
            kept.append(next(stream))
    for one, other in zip(separate, joint, strict=True):
        assert np.array_equal(stack_logits(one), stack_logits(other))


def test_sessions_in_parallel_threads_give_the_same_results(model: Samwise) -> None:
    videos = [scene(10, seed=seed) for seed in range(3)]
    expected = [stack_logits(list(session_of(model, [CAPTION]).stream(video))) for video in videos]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda video: stack_logits(list(session_of(model, [CAPTION]).stream(video))), videos))
    for one, other in zip(expected, found, strict=True):
        assert np.abs(one - other).max() < 1e-4


TOLERANCE = 1e-4
"""Batched and single matrix products round differently, and memory feeds it back; relative to the largest logit."""


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the largest difference of logits relative to the largest logit, ignoring those of absent objects."""
    return float(np.abs(one - other).max() / np.abs(one[one > -1000]).max())


def test_several_sentences_give_the_results_of_each_alone(model: Samwise) -> None:
    frames = scene(14)
    captions = [CAPTION, SHORT_CAPTION, [0, 50, 51, 2]]
    joint = stack_logits(list(session_of(model, captions).stream(frames)))
    for index, caption in enumerate(captions):
        alone = stack_logits(list(session_of(model, [caption]).stream(frames)))
        assert difference(joint[:, index], alone[:, 0]) < TOLERANCE
    assert difference(joint[:, 0], joint[:, 1]) > 100 * TOLERANCE  # the sentence matters


def test_padding_leaks_only_in_the_published_protocol() -> None:
    published = micro_model(protocol="published")
    frames = scene(8)
    joint = stack_logits(list(session_of(published, [CAPTION, SHORT_CAPTION]).stream(frames)))
    alone = stack_logits(list(session_of(published, [SHORT_CAPTION]).stream(frames)))
    assert difference(joint[:, 1], alone[:, 0]) > 10 * TOLERANCE


def test_tracks_added_and_dropped_between_frames(model: Samwise) -> None:
    frames = scene(16)
    session = session_of(model, [CAPTION])
    first = session.clip(frames[:8])
    assert session.add(prompt_of(SHORT_CAPTION)) == 1
    late = session.clip(frames[8:])
    assert late[0].track_ids == (0, 1)
    fresh = list(session_of(model, [SHORT_CAPTION]).stream(frames[8:]))
    whole = list(session_of(model, [CAPTION]).stream(frames))
    assert difference(stack_logits(late)[:, 1], stack_logits(fresh)[:, 0]) < TOLERANCE
    assert difference(stack_logits(first)[:, 0], stack_logits(whole)[:8, 0]) < TOLERANCE
    assert difference(stack_logits(late)[:, 0], stack_logits(whole)[8:, 0]) < TOLERANCE
    session.drop(0)
    assert session.step(frames[0]).track_ids == (1,)
    with pytest.raises(PromptError, match="no track 0; the tracks are \\[1\\]"):
        session.drop(0)


def test_a_session_without_tracks_returns_no_masks(model: Samwise) -> None:
    result = model.open().step(scene(1)[0])
    assert result.masks.shape == (0, 96, 128)
    assert result.presence.shape == (0,)


def test_the_memory_of_a_session_stays_constant(model: Samwise) -> None:
    frames = scene(16, 32, 32)
    session = session_of(model, [CAPTION, SHORT_CAPTION])
    sizes = {}
    for index in range(0, 600, 8):
        session.clip(frames[:8])
        sizes[index + 8] = bytes_kept(session)
    assert sizes[600] == sizes[104] == sizes[24]
    memory = session._tracks[0].state.memory
    assert (len(memory.maps), len(memory.pointers)) == (6, 15)
    # 6 maps of 64 x 8 x 8 and 15 pointers of 64 for each of two tracks, with at most a batch of two kept alive.
    assert sizes[600] < 2 * 2 * 4 * (6 * 64 * 64 + 15 * 64) + 1000


@pytest.mark.slow
def test_ten_thousand_frames_in_constant_memory(model: Samwise) -> None:
    import resource

    frames = scene(8, 32, 32)
    session = session_of(model, [CAPTION])
    kept, peak = {}, {}
    for index in range(0, 10_000, 8):
        session.clip(frames)
        if index in (96, 992, 9_992):
            kept[index] = bytes_kept(session)
            peak[index] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\nkept {kept} bytes, peak {peak} kB")
    assert kept[96] == kept[992] == kept[9_992]
    assert peak[9_992] < peak[992] * 1.02


@pytest.mark.slow
def test_two_thousand_frames_of_the_tiny_preset_in_constant_memory() -> None:
    """Runs SAM2 tiny and RoBERTa-base at their published widths, on small frames for speed."""
    import resource
    from dataclasses import replace

    from refervos.samwise.config import SAMWISE_PRESETS

    tiny = SAMWISE_PRESETS["tiny"]
    model = Samwise(replace(tiny, sam2=replace(tiny.sam2, image_size=128), short_side=128))
    session = session_of(model, [CAPTION])
    frames = scene(8, 64, 64)
    kept, peak = {}, {}
    for index in range(0, 2000, 8):
        session.clip(frames)
        if index in (96, 1992):
            kept[index] = bytes_kept(session)
            peak[index] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\nkept {kept} bytes, peak {peak} kB")
    assert kept[96] == kept[1992]
    assert peak[1992] < peak[96] * 1.02


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((33, 200, 3), np.uint8),
        np.zeros((200, 33, 3), np.uint8),
        np.zeros((40, 50), np.uint8),
        np.zeros((40, 50, 1), np.uint8),
        torch.zeros(40, 50, 3, dtype=torch.uint8),
        np.zeros((80, 100, 3), np.uint8)[::2, ::-2],
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((5, 1, 3), np.uint8)[:, ::-1],
        np.zeros((3, 700, 3), np.uint8),
        np.zeros((500, 900, 3), np.uint8),
    ],
    ids=["wide", "tall", "gray", "gray channel", "tensor", "strided", "one pixel", "mirrored column", "strip", "large"],
)
def test_frames_of_any_size_give_masks_of_that_size(model: Samwise, frame: object) -> None:
    shape = tuple(frame.shape[:2])  # type: ignore[attr-defined]
    result = session_of(model, [CAPTION]).step(frame)
    assert result.masks.shape == (1, *shape)
    assert result.masks.dtype == bool


def test_a_gray_frame_equals_an_rgb_frame_of_equal_channels(model: Samwise) -> None:
    gray = scene(1)[0][..., 0]
    one = session_of(model, [CAPTION]).step(gray)
    other = session_of(model, [CAPTION]).step(np.repeat(gray[..., None], 3, axis=2))
    assert np.array_equal(stack_logits([one]), stack_logits([other]))


@pytest.mark.parametrize("writeable", [True, False])
def test_frames_are_not_modified_and_may_be_read_only(model: Samwise, writeable: bool) -> None:
    frame = scene(1)[0]
    original = frame.copy()
    frame.flags.writeable = writeable
    result = session_of(model, [CAPTION]).step(frame)
    assert np.array_equal(frame, original)
    assert np.array_equal(stack_logits([result]), stack_logits([session_of(model, [CAPTION]).step(original)]))


def test_the_frame_size_may_change_within_a_clip(model: Samwise) -> None:
    results = session_of(model, [CAPTION]).clip([scene(1)[0], scene(1, 50, 70)[0]])
    assert [result.masks.shape for result in results] == [(1, 96, 128), (1, 50, 70)]


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (np.zeros((4, 4, 3), np.float32), "the frame has values of type float32; it must be uint8 from 0 to 255."),
        (np.zeros((4, 4, 4), np.uint8), r"the frame has shape \(4, 4, 4\); it must be \(H, W, 3\) in RGB"),
        (np.zeros((0, 4, 3), np.uint8), "it has no pixels"),
        ("frame.png", "the frame is a str; it must be a uint8 array or tensor"),
        (torch.zeros(3, 4, 4), "torch.float32; it must be uint8"),
    ],
)
def test_invalid_frames_are_refused_and_change_nothing(model: Samwise, frame: object, sentence: str) -> None:
    session = session_of(model, [CAPTION])
    with pytest.raises(FrameError, match=sentence):
        session.step(frame)
    assert session.frame_index == 0
    assert session._tracks[0].state.frame == 0


def test_invalid_calls_are_refused(model: Samwise) -> None:
    with pytest.raises(FrameError, match="no frames"):
        model.open().clip([])
    with pytest.raises(ConfigError, match="clip_length is 0"):
        next(model.open().stream(scene(1), clip_length=0))
    with pytest.raises(PromptError, match="no tokenizer files"):
        micro_model().open("the dog")
    with pytest.raises(PromptError, match="SAMWISE needs a sentence and was given box alone"):
        model.open([Prompt(box=(1, 2, 3, 4))])
    with pytest.raises(PromptError, match="is a int"):
        model.open([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="training mode"):
        micro_model().train().open()


def test_neither_autocast_nor_inference_mode_stays_on_in_the_callers_code() -> None:
    model = micro_model()
    model.to(torch.bfloat16)
    frames = scene(4)
    stream = session_of(model, [CAPTION]).stream(frames)
    found = []
    for _ in range(4):
        found.append(next(stream))
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_inference_mode_enabled()
    exact = list(session_of(micro_model(), [CAPTION]).stream(frames))
    assert np.abs(stack_logits(found) - stack_logits(exact)).max() > 0


def disc_and_square() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draw a moving red disc and a blue square; return the frames and the disc's masks."""
    y, x = np.mgrid[0:96, 0:128]
    frames, ground_truth = [], []
    for t in range(8):
        frame = np.full((96, 128, 3), 110, np.uint8)
        disc = (x - 30 - 4 * t) ** 2 + (y - 45) ** 2 < 18**2
        frame[disc] = (220, 40, 40)
        frame[60:90, 85:115] = (40, 90, 220)
        frames.append(frame)
        ground_truth.append(disc)
    return frames, ground_truth


def test_the_miniature_follows_a_sentence() -> None:
    frames, ground_truth = disc_and_square()
    session = load("miniature", device="cpu").open(["the red circle", "the blue square"])
    for result, disc in zip(session.stream(frames), ground_truth, strict=True):
        circle, square = result.masks
        assert iou(circle, disc) > 0.6
        assert (square & disc).sum() < 0.2 * disc.sum()
        assert result.presence[0] > 0.5


def test_bfloat16_agrees_with_float32() -> None:
    frames, _ = disc_and_square()
    exact = list(load("miniature", device="cpu").open("the red circle").stream(frames))
    mixed = list(load("miniature", device="cpu", dtype="bfloat16").open("the red circle").stream(frames))
    assert min(iou(a.masks, b.masks) for a, b in zip(exact, mixed, strict=True)) > 0.95
