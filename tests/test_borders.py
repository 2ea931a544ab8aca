"""Mask borders that follow the edges of the frame, in every family and at every size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from device_models import sam2_model
from refervos.errors import ConfigError
from refervos.evaluation.inference import PromptedClip, predict_batch, predict_clip
from refervos.loading import load
from refervos.ops.borders import FrameGuide, cell_colours
from refervos.placement import Placement, letterbox, stretch
from refervos.prompts import Prompt
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.session.session import Session
from refervos.worlds import Clip, WorldConfig, draw_clip
from scenes import CAPTION, FIRST_GENERATION, SHORT_CAPTION, iou, micro_model, scene, session_of

SENTENCE = "the red circle"


def disc(size: tuple[int, int], radius: float) -> np.ndarray:
    """Draw the mask of a disc in the middle of a frame, bool (H, W)."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    found: np.ndarray = (x - size[1] / 2) ** 2 + (y - size[0] / 2) ** 2 < radius**2
    return found


def draw_frame(mask: np.ndarray, seed: int = 0) -> Tensor:
    """Draw a frame with the mask in orange on noisy blue, uint8 (3, H, W)."""
    noise = np.random.default_rng(seed).normal(0, 4, (*mask.shape, 3))
    frame = np.where(mask[..., None], (230, 120, 30), (40, 60, 170)) + noise
    return torch.from_numpy(frame.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def noisy_logits(mask: np.ndarray, placement: Placement, cell: int = 4, seed: int = 0) -> Tensor:
    """Make noisy low-resolution mask logits of a mask (1, S/cell, S/cell)."""
    placed = torch.zeros(1, 1, placement.image_size, placement.image_size)
    height, width = placement.resized
    whole = torch.from_numpy(mask).float()[None, None]
    placed[..., :height, :width] = torch.nn.functional.interpolate(whole, size=(height, width), mode="area")
    share = torch.nn.functional.avg_pool2d(placed, cell)[0]
    return 12 * (share - 0.5) + torch.from_numpy(np.random.default_rng(seed).normal(0, 1.5, share.shape)).float()


def sentences_about(clip: Clip) -> list[str]:
    """Return a sentence about each of a clip's objects."""
    return [f"the {thing.colour} {thing.kind}" for thing in clip.scene.objects]


@pytest.mark.parametrize(
    "placement",
    [
        letterbox((128, 128), 128, 128),
        letterbox((96, 128), 128, 128),
        stretch((90, 150), 128),
        letterbox((64, 40), 64, 64),
    ],
    ids=["square", "letterbox", "stretched", "portrait"],
)
@pytest.mark.parametrize("cells", [3, 7])
def test_masks_follow_the_edges_of_the_frame(placement: Placement, cells: int) -> None:
    mask = disc(placement.frame_size, 0.31 * min(placement.frame_size))
    logits = noisy_logits(mask, placement)
    plain = placement.masks(logits)[0].numpy()
    crisp = placement.masks(logits, FrameGuide(draw_frame(mask), cells))[0].numpy()
    assert iou(crisp, mask) > 0.95
    assert 1 - iou(crisp, mask) < 0.6 * (1 - iou(plain, mask))


def test_logits_away_from_borders_do_not_change() -> None:
    placement = letterbox((96, 128), 128, 128)
    mask = disc((96, 128), 30)
    logits = noisy_logits(mask, placement)
    plain, crisp = placement.restore(logits), placement.restore(logits, FrameGuide(draw_frame(mask)))
    sure = plain.abs() >= 4.0
    assert 0.3 < sure.float().mean() < 0.95
    assert torch.equal(plain[sure], crisp[sure])
    absent = torch.full((1, 32, 32), -1024.0)
    assert torch.equal(placement.restore(absent, FrameGuide(draw_frame(mask))), placement.restore(absent))


def test_a_frame_without_edges_hardly_moves_the_border() -> None:
    placement = letterbox((128, 128), 128, 128)
    logits = noisy_logits(disc((128, 128), 40), placement)
    grey = FrameGuide(torch.full((3, 128, 128), 90, dtype=torch.uint8))
    plain, guided = (placement.masks(logits, guide)[0].numpy() for guide in (None, grey))
    assert iou(plain, guided) > 0.93


def test_masks_of_one_frame_do_not_affect_each_other() -> None:
    placement = letterbox((96, 128), 128, 128)
    masks = [disc((96, 128), radius) for radius in (12, 25, 40)]
    logits = torch.cat([noisy_logits(mask, placement, seed=seed) for seed, mask in enumerate(masks)])
    guide = FrameGuide(draw_frame(masks[1]))
    joint = placement.restore(logits, guide)
    for row, alone in zip(joint, logits.split(1), strict=True):
        torch.testing.assert_close(row, placement.restore(alone, guide)[0], atol=1e-5, rtol=1e-5)


def test_partial_cells_have_the_colour_of_their_pixels() -> None:
    frame = torch.full((3, 6, 9), 100, dtype=torch.uint8)
    assert cell_colours(frame, 4).shape == (3, 2, 3)
    torch.testing.assert_close(cell_colours(frame, 4), torch.full((3, 2, 3), 100 / 255))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_refined_in_float32(dtype: torch.dtype) -> None:
    placement = letterbox((96, 128), 128, 128)
    mask = disc((96, 128), 30)
    crisp = placement.restore(noisy_logits(mask, placement).to(dtype), FrameGuide(draw_frame(mask)))
    assert crisp.dtype == torch.float32
    assert iou((crisp[0] > 0).numpy(), mask) > 0.95


# Sessions.


def test_sessions_refine_borders_on_request() -> None:
    model = load(device="cpu")
    clip = draw_clip(5, WorldConfig(height=96, width=160, frames=4))
    plain = model.open(sentences_about(clip), keep_logits=True, borders="bilinear")
    crisp, fine = (
        model.open(sentences_about(clip), keep_logits=True, borders="frame", border_cells=cells) for cells in (3, 7)
    )
    for frame in clip.frames:
        results = [session.step(frame) for session in (plain, crisp, fine)]
        for result in results:
            assert result.logits is not None
            assert np.array_equal(result.masks, result.logits > 0)
            assert np.array_equal(result.presence, results[0].presence)
    assert not np.array_equal(results[0].masks, results[1].masks)
    assert not np.array_equal(results[1].masks, results[2].masks)


def test_a_restored_session_keeps_its_borders(tmp_path: Path) -> None:
    model = micro_model(time="online", borders="frame")
    session = session_of(model, [CAPTION, SHORT_CAPTION])
    for frame in scene(3):
        session.step(frame)
    session.save(tmp_path / "session")
    other = Session.restore(tmp_path / "session", model)
    assert (other.borders, other.border_cells) == ("frame", 3)
    corrected = [each.correct(0, points=[(40, 40)]) for each in (session, other)]
    assert np.array_equal(corrected[0].masks, corrected[1].masks)
    later = [each.step(scene(4)[3]) for each in (session, other)]
    assert np.array_equal(later[0].masks, later[1].masks)


def test_batched_evaluation_gives_the_borders_of_single_clips() -> None:
    model, plain = (load(device="cpu", borders=borders) for borders in ("frame", "bilinear"))
    assert isinstance(model, Samwise)
    assert isinstance(plain, Samwise)
    clip = draw_clip(5, WorldConfig(height=96, width=128, frames=4))
    prompted = [PromptedClip(clip.frames, Prompt(text)) for text in sentences_about(clip)]
    joint = predict_batch(model, prompted, 1)
    for clip_and_prompt, result in zip(prompted, joint, strict=True):
        assert np.mean(result.masks != predict_clip(model, clip_and_prompt, 1).masks) < 1e-4
    bilinear = predict_batch(plain, prompted, 1)
    assert any(not np.array_equal(a.masks, b.masks) for a, b in zip(joint, bilinear, strict=True))


def test_every_family_supports_borders_that_follow_the_frame() -> None:
    frame = scene(1)[0]
    refsam = load("refsam-miniature", device="cpu")
    assert refsam.open(SENTENCE).borders == "frame"  # as configured
    models: list[Any] = [sam2_model(torch.float32), refsam]
    for model, prompt in zip(models, (Prompt(points=[(30, 40)]), Prompt(SENTENCE)), strict=True):
        plain, crisp = (
            model.open([prompt], borders=borders, keep_logits=True).step(frame).logits
            for borders in ("bilinear", "frame")
        )
        assert plain.shape == crisp.shape == (1, *frame.shape[:2])
        assert not np.array_equal(plain, crisp)


def test_invalid_border_options_are_refused() -> None:
    model = micro_model()
    with pytest.raises(ConfigError, match=r"borders is 'sharp'; it must be 'bilinear' or 'frame'\."):
        Session(model, borders="sharp")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"border_cells is 4; it must be odd, such as 3\."):
        Session(model, border_cells=4)
    with pytest.raises(ConfigError, match="borders is 'frame', which the published protocol does not have"):
        replace(SamwiseConfig(), borders="frame", protocol="published")
    assert load(FIRST_GENERATION, device="cpu", protocol="published", time="clip").open(SENTENCE).borders == "bilinear"
