"""Online mode: each frame attends to earlier frames in the adapters' windows, never to later ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from refervos.errors import ConfigError
from refervos.samwise import cmt
from refervos.samwise.cmt import CrossModalTemporalAdapter
from refervos.samwise.model import Samwise
from refervos.samwise.streamer import SamwiseStreamer
from scenes import CAPTION, SHORT_CAPTION, micro_model, scene

FRAMES = 6


def placed(model: Samwise, frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    """Place the frames of one video in the square (T, 3, S, S)."""
    place = model.placement((96, 128))
    return torch.stack([place.place(torch.from_numpy(f).permute(2, 0, 1)) for f in scene(frames, seed=seed)]).double()


def logits_of(model: Samwise, pixels: torch.Tensor, captions: list[list[int]], at_once: int = 1) -> torch.Tensor:
    """Segment frames ``at_once`` at a time; return mask logits (T, N, h, w)."""
    tracks = [model.begin_tokens(caption) for caption in captions]
    place = model.placement((96, 128))
    predictions = [
        prediction.mask_logits
        for clip in pixels.split(at_once)
        for prediction in model.segment_clip(clip, tracks, [place] * len(clip))
    ]
    return torch.stack(predictions)


def online_model() -> Samwise:
    """Make an online model in double precision, where the order of summation does not matter."""
    return micro_model(time="online", clip_length=3).double()


def test_the_first_frame_equals_a_clip_of_one_frame() -> None:
    online, clips = online_model(), micro_model(clip_length=3).double()
    pixels = placed(online, 1)
    torch.testing.assert_close(logits_of(online, pixels, [CAPTION]), logits_of(clips, pixels, [CAPTION]))


def test_frames_in_clips_give_the_results_of_frames_one_by_one() -> None:
    model = online_model()
    pixels = placed(model)
    alone = logits_of(model, pixels, [CAPTION])
    for at_once in (2, FRAMES):
        torch.testing.assert_close(logits_of(model, pixels, [CAPTION], at_once), alone, atol=1e-8, rtol=1e-8)


def test_no_frame_depends_on_later_frames() -> None:
    model = online_model()
    pixels = placed(model)
    changed = pixels.clone()
    changed[4:] = placed(model, seed=3)[4:]
    before, after = (logits_of(model, some, [CAPTION], FRAMES) for some in (pixels, changed))
    torch.testing.assert_close(after[:4], before[:4])
    assert not torch.allclose(after[4], before[4])


def test_a_frame_attends_to_the_frames_of_its_window_and_no_earlier_ones() -> None:
    """Tested at the first adapter only: the later ones, and the memory, reach further back."""
    model = online_model()
    pixels = placed(model)
    ids = torch.tensor([CAPTION])

    def adapted(video: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.encode_stages(model.encode_shared(video.unsqueeze(0))[1], ids)[0][0][0]

    changed = pixels.clone()
    changed[1] = placed(model, seed=3)[1]
    differs = [not torch.allclose(a, b) for a, b in zip(adapted(pixels), adapted(changed), strict=True)]
    assert differs == [False, True, True, True, False, False]


def test_a_window_equals_a_clip_that_ends_with_the_frame() -> None:
    """If only the first adapter changes the image, the last of three frames equals that of a clip of three."""
    online, clips = online_model(), micro_model(clip_length=3).double()
    for model in (online, clips):
        for adapter in model.adapters[1:]:
            assert isinstance(adapter, CrossModalTemporalAdapter)
            adapter.changes_vision = False
    pixels = placed(online, 3)
    ids = torch.tensor([CAPTION])
    with torch.no_grad():
        _, second = clips.encode_shared(pixels.unsqueeze(0))
        whole = clips.encode_stages(second, ids)[0][2][0]
        causal = online.encode_stages(second, ids)[0][2][0]
    torch.testing.assert_close(causal[2], whole[2], atol=1e-8, rtol=1e-8)
    assert not torch.allclose(causal[0], whole[0])


def test_a_sentence_added_later_starts_with_an_empty_window() -> None:
    """It gives the results of a stream that starts there, and does not affect the other sentence."""
    model = online_model()
    pixels, place = placed(model), model.placement((96, 128))
    old, new = model.begin_tokens(CAPTION), model.begin_tokens(SHORT_CAPTION)
    predictions = []
    for time in range(FRAMES):
        tracks = [new, old] if time >= 2 else [old]
        (prediction,) = model.segment_clip(pixels[time : time + 1], tracks, [place])
        predictions.append(prediction.mask_logits)
    torch.testing.assert_close(
        torch.stack([prediction[-1] for prediction in predictions]),
        logits_of(model, pixels, [CAPTION])[:, 0],
        atol=1e-8,
        rtol=1e-8,
    )
    torch.testing.assert_close(
        torch.stack([prediction[0] for prediction in predictions[2:]]),
        logits_of(model, pixels[2:], [SHORT_CAPTION])[:, 0],
        atol=1e-8,
        rtol=1e-8,
    )


@pytest.mark.parametrize("time", ["clip", "online"])
def test_a_small_memory_budget_splits_the_batch_and_changes_no_result(time: str) -> None:
    model = micro_model(time=time, clip_length=3).double()
    pixels = placed(model)
    captions = [CAPTION, SHORT_CAPTION, CAPTION[:4] + CAPTION[-1:]]
    at_once = model.clip_length
    whole = logits_of(model, pixels, captions, at_once)
    model.memory_budget = 1
    assert len(model._batches([model.begin_tokens(caption) for caption in captions], at_once)) == 3
    torch.testing.assert_close(logits_of(model, pixels, captions, at_once), whole, atol=1e-8, rtol=1e-8)


def test_a_streamer_without_its_parts_cannot_be_instantiated() -> None:
    class Nothing(SamwiseStreamer):
        """Streamer without encoders and CME."""

    with pytest.raises(TypeError, match=r"correct.*device.*encode_shared.*encode_tracks.*switch_logits"):
        Nothing()  # type: ignore[abstract]


def test_windows_are_bounded() -> None:
    model = online_model()
    pixels, place = placed(model, 1), model.placement((96, 128))
    track = model.begin_tokens(CAPTION)
    for _ in range(5):
        list(model.segment_clip(pixels, [track], [place]))
    assert [len(kept) for kept in track.windows.frames] == [2, 2, 2]


def test_training_is_causal_and_gradients_reach_the_whole_window() -> None:
    model = online_model().train()
    for module in model.adapters.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # batch statistics would mix all frames
    pixels = placed(model).unsqueeze(0).requires_grad_()
    ids = torch.tensor([CAPTION])
    stages, _ = model.encode_stages(model.encode_shared(pixels)[1], ids)
    (gradient,) = torch.autograd.grad(stages[0][0, 3].sum(), pixels)
    assert [bool(frame.abs().max() > 0) for frame in gradient[0]] == [False, True, True, True, False, False]


def test_the_published_protocol_has_no_online_mode() -> None:
    with pytest.raises(ConfigError, match="online"):
        replace(micro_model().config, time="online", protocol="published")


@pytest.mark.parametrize("time", ["clip", "online"])
def test_a_cpu_adapts_large_images_a_few_patches_at_a_time(time: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = micro_model(time=time, clip_length=3).double()
    pixels = placed(model, 4)
    whole = logits_of(model, pixels, [CAPTION, SHORT_CAPTION], model.clip_length)
    pieces: list[int] = []
    change = CrossModalTemporalAdapter._change_vision

    def counted(adapter: CrossModalTemporalAdapter, x: torch.Tensor, *others: Any) -> torch.Tensor:
        pieces.append(x.shape[1])
        return change(adapter, x, *others)

    monkeypatch.setattr(cmt, "CPU_CHUNK", 1)
    monkeypatch.setattr(CrossModalTemporalAdapter, "_change_vision", counted)
    assert torch.equal(logits_of(model, pixels, [CAPTION, SHORT_CAPTION], model.clip_length), whole)
    grid = model.config.sam2.grid
    rows = {(2 * grid >> index) // side for index, side in enumerate(model.config.hsa_patches)}
    assert set(pieces) == rows  # one row of patches after another
