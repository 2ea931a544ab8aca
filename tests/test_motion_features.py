"""Movement features: what changed in the small frame as an input of the first adapter; off as published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from refervos.errors import ConfigError
from refervos.loading import load
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.samwise.motion import MotionFeatures, compare_frames, small_frames
from refervos.samwise.track import SamwiseTrack
from refervos.session.session import Session
from refervos.training.stages.samwise import build_samwise
from scenes import CAPTION, FIRST_GENERATION, SHORT_CAPTION, micro_model, prompt_of, scene, session_of

FRAMES = 7


def moving_model(**changes: Any) -> Samwise:
    """Make a small model with non-zero movement features, in double precision."""
    model = micro_model(motion_features=True, time="online", clip_length=3, **changes)
    assert model.motion_features is not None
    torch.manual_seed(0)
    torch.nn.init.normal_(model.motion_features.third.weight, std=0.5)
    return model.double()


def placed(model: Samwise, seed: int = 0) -> Tensor:
    place = model.placement((96, 128))
    frames = [torch.from_numpy(frame).permute(2, 0, 1) for frame in scene(FRAMES, seed=seed)]
    return torch.stack([place.place(frame) for frame in frames]).double()


def logits_of(model: Samwise, pixels: Tensor, at_once: int = 1) -> Tensor:
    """Segment frames ``at_once`` at a time; return mask logits (T, N, h, w)."""
    tracks = [model.begin_tokens(caption) for caption in (CAPTION, SHORT_CAPTION)]
    place = model.placement((96, 128))
    parts = [model.segment_clip(clip, tracks, [place] * len(clip)) for clip in pixels.split(at_once)]
    return torch.stack([prediction.mask_logits for part in parts for prediction in part])


def test_a_frame_is_compared_with_three_earlier_frames() -> None:
    features = MotionFeatures(8).double()
    torch.nn.init.normal_(features.third.weight)
    pixels = torch.rand(1, 6, 3, 32, 32, dtype=torch.float64)
    small = small_frames(pixels)
    assert small.shape == (1, 6, 3, 16, 16)
    found = features(compare_frames(small))
    assert found.shape == (6, 4, 4, 8)
    for time in range(6):
        earlier = [small[:, max(0, time - lag)] for lag in (1, 2, 4)]
        seen = torch.cat([small[:, time], *(small[:, time] - frame for frame in earlier)], dim=1)
        expected = features.third(torch.relu(features.second(torch.relu(features.first(seen)))))
        torch.testing.assert_close(found[time], expected[0].permute(1, 2, 0))
    torch.testing.assert_close(features(compare_frames(small[:, 4:], small[:, :4])), found[4:])


class CalledOperations(TorchDispatchMode):
    """Mode that records the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_frames_are_compared_without_indices_which_a_gpu_would_wait_for() -> None:
    with CalledOperations() as called:
        compare_frames(torch.zeros(1, 2, 3, 16, 16), torch.zeros(1, 3, 3, 16, 16))
    assert "aten::sub.Tensor" in called.names
    assert not any(name.startswith("aten::index") for name in called.names)


def test_untrained_movement_features_do_not_change_the_masks() -> None:
    shipped = load(FIRST_GENERATION, device="cpu")
    assert isinstance(shipped, Samwise)
    assert not shipped.config.motion_features
    config = replace(shipped.config, motion_features=True)
    model = build_samwise(config, {"model": FIRST_GENERATION}, seed=1, cme=True)
    assert model.motion_features is not None
    assert sum(parameter.numel() for parameter in model.motion_features.parameters()) < 66_000
    assert "motion features" in model.trained_parts()
    frames = scene(3)
    ours, theirs = (each.open("the red circle", keep_logits=True) for each in (model.eval(), shipped))
    for frame in frames:
        mine, expected = ours.step(frame), theirs.step(frame)
        assert mine.logits is not None
        assert expected.logits is not None
        np.testing.assert_allclose(mine.logits, expected.logits, atol=2e-3)


@pytest.mark.parametrize("at_once", [2, FRAMES])
def test_frames_in_clips_give_the_results_of_frames_one_by_one(at_once: int) -> None:
    model = moving_model()
    pixels = placed(model)
    torch.testing.assert_close(logits_of(model, pixels, at_once), logits_of(model, pixels), atol=1e-8, rtol=1e-8)


def test_movement_features_depend_on_earlier_frames_and_never_on_later_ones() -> None:
    model = moving_model()
    pixels = placed(model)
    before = logits_of(model, pixels)
    later, earlier = pixels.clone(), pixels.clone()
    later[4] = later[4].flip(-1)
    earlier[0] = earlier[0].flip(-1)
    changed = (logits_of(model, later) - before).abs().amax(dim=(1, 2, 3))
    assert changed[:4].max() == 0
    assert changed[4] > 1e-3
    changed = (logits_of(model, earlier) - before).abs().amax(dim=(1, 2, 3))
    assert changed[4] > 1e-6  # four frames later


def test_a_new_track_has_no_earlier_frames_and_a_gap_clears_those_of_all() -> None:
    model = moving_model().float()
    session = session_of(model, [CAPTION])
    frames = scene(6)
    for frame in frames[:3]:
        session.step(frame)
    session.add(prompt_of(SHORT_CAPTION))
    for frame in frames[3:]:
        assert session.step(frame).masks.shape[0] == 2
    lengths = [len(track.state.windows.pictures) for track in session._tracks.values()]
    assert lengths == [4, 3]
    session.mark_gap()
    assert [len(track.state.windows.pictures) for track in session._tracks.values()] == [0, 0]
    session.step(frames[0])


def test_a_track_that_starts_later_has_the_masks_that_it_would_have_alone() -> None:
    """The windows here hold two frames, as many as both tracks have soon; small frames are kept longer."""
    model, frames = moving_model(), scene(6)
    both, alone = session_of(model, [CAPTION]), session_of(model, [SHORT_CAPTION])
    for frame in frames[:3]:
        both.step(frame)
    both.add(prompt_of(SHORT_CAPTION))
    for frame in frames[3:]:
        together, separate = both.step(frame).logits, alone.step(frame).logits
        assert together is not None
        assert separate is not None
        np.testing.assert_allclose(together[1], separate[0], atol=1e-4)


def test_clips_of_several_videos_have_the_masks_of_each_alone() -> None:
    """The videos have begun at different times, so that one lacks an earlier frame that the other has."""
    model = moving_model()
    videos = torch.stack([placed(model, seed) for seed in range(2)])  # (V, T, 3, S, S)
    place, past = model.placement((96, 128)), (4, 3)

    def begun() -> list[SamwiseTrack]:
        tracks = [model.begin_tokens(CAPTION), model.begin_tokens(CAPTION)]
        for video, track, frames in zip(videos, tracks, past, strict=True):
            list(model.segment_clip(video[:frames], [track], [place] * frames))
        return tracks

    following = torch.stack([video[frames : frames + 1] for video, frames in zip(videos, past, strict=True)])
    (together,) = model.segment_clips(following, begun())
    for row, track in enumerate(begun()):
        (alone,) = model.segment_clip(following[row], [track], [place])
        torch.testing.assert_close(together.mask_logits[row], alone.mask_logits[0], atol=1e-8, rtol=1e-8)


def test_a_restored_session_gives_identical_masks(tmp_path: Path) -> None:
    model = moving_model().float()
    session = session_of(model, [CAPTION, SHORT_CAPTION])
    frames = scene(4)
    for frame in frames[:3]:
        session.step(frame)
    session.save(tmp_path / "session")
    other = Session.restore(tmp_path / "session", model)
    mine, theirs = session.step(frames[3]).logits, other.step(frames[3]).logits
    assert mine is not None
    assert theirs is not None
    assert np.array_equal(mine, theirs)


def test_training_reaches_the_movement_features() -> None:
    model = moving_model().float().train()
    output = model(torch.rand(2, 3, 3, model.image_size, model.image_size), torch.tensor([CAPTION, CAPTION]))
    output.mask_logits.square().mean().backward()
    assert model.motion_features is not None
    for name, parameter in model.motion_features.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_movement_features_are_saved_and_loaded(tmp_path: Path) -> None:
    model = moving_model().float()
    model.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    assert isinstance(loaded, Samwise)
    assert loaded.config.motion_features
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_published_protocol_has_no_movement_features() -> None:
    with pytest.raises(ConfigError, match="motion_features are on, which the published protocol does not have"):
        SamwiseConfig(motion_features=True, protocol="published")
    assert not any(name.startswith("motion_features") for name in micro_model().state_dict())


def test_movement_features_in_bfloat16_agree_with_float32() -> None:
    exact, rounded = (moving_model().float() for _ in range(2))
    rounded.to(torch.bfloat16)
    assert exact.motion_features is not None
    assert rounded.motion_features is not None
    compared = compare_frames(small_frames(placed(exact).float().unsqueeze(0)))
    with torch.no_grad():
        expected, found = exact.motion_features(compared), rounded.motion_features(compared)
    assert found.dtype == torch.bfloat16
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    session = session_of(rounded, [CAPTION, SHORT_CAPTION])
    for frame in scene(3):
        assert session.step(frame).masks.shape == (2, 96, 128)
