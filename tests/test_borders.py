"""Borders that follow the frame: masks of few cells become as crisp as the frame, in every family and size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from refervos.errors import ConfigError
from refervos.evaluation.inference import PromptedClip, predict_batch, predict_clip
from refervos.loading import load
from refervos.ops.borders import FrameGuide, cell_colours
from refervos.placement import Placement, letterbox, stretch
from refervos.prompts import Prompt
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.session.session import Session
from refervos.worlds import Clip, WorldConfig, draw_clip
from scenes import CAPTION, MICRO_SAM2, SHORT_CAPTION, micro_model, scene, session_of

SENTENCE = "the red circle"


def disc(size: tuple[int, int], radius: float) -> np.ndarray:
    """A disc in the middle of a frame, bool (H, W)."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    found: np.ndarray = (x - size[1] / 2) ** 2 + (y - size[0] / 2) ** 2 < radius**2
    return found


def pictured(mask: np.ndarray, seed: int = 0) -> Tensor:
    """A frame in which a mask is orange on a noisy blue, uint8 (3, H, W)."""
    noise = np.random.default_rng(seed).normal(0, 4, (*mask.shape, 3))
    frame = np.where(mask[..., None], (230, 120, 30), (40, 60, 170)) + noise
    return torch.from_numpy(frame.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def in_cells(mask: np.ndarray, placement: Placement, cell: int = 4, seed: int = 0) -> Tensor:
    """What a model that saw the mask roughly would answer: (1, S/cell, S/cell)."""
    placed = torch.zeros(1, 1, placement.image_size, placement.image_size)
    height, width = placement.resized
    whole = torch.from_numpy(mask).float()[None, None]
    placed[..., :height, :width] = torch.nn.functional.interpolate(whole, size=(height, width), mode="area")
    share = torch.nn.functional.avg_pool2d(placed, cell)[0]
    return 12 * (share - 0.5) + torch.from_numpy(np.random.default_rng(seed).normal(0, 1.5, share.shape)).float()


def named(clip: Clip) -> list[str]:
    """A sentence about each of a clip's objects."""
    return [f"the {thing.colour} {thing.kind}" for thing in clip.scene.objects]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


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
    truth = disc(placement.frame_size, 0.31 * min(placement.frame_size))
    logits = in_cells(truth, placement)
    plain = placement.masks(logits)[0].numpy()
    crisp = placement.masks(logits, FrameGuide(pictured(truth), cells))[0].numpy()
    assert iou(crisp, truth) > 0.95
    assert 1 - iou(crisp, truth) < 0.6 * (1 - iou(plain, truth))


def test_nothing_changes_away_from_borders() -> None:
    placement = letterbox((96, 128), 128, 128)
    truth = disc((96, 128), 30)
    logits = in_cells(truth, placement)
    plain, crisp = placement.restore(logits), placement.restore(logits, FrameGuide(pictured(truth)))
    sure = plain.abs() >= 4.0
    assert 0.3 < sure.float().mean() < 0.95
    assert torch.equal(plain[sure], crisp[sure])
    absent = torch.full((1, 32, 32), -1024.0)
    assert torch.equal(placement.restore(absent, FrameGuide(pictured(truth))), placement.restore(absent))


def test_a_frame_without_edges_leaves_the_border_where_it_was() -> None:
    placement = letterbox((128, 128), 128, 128)
    logits = in_cells(disc((128, 128), 40), placement)
    grey = FrameGuide(torch.full((3, 128, 128), 90, dtype=torch.uint8))
    plain, guided = (placement.masks(logits, guide)[0].numpy() for guide in (None, grey))
    assert iou(plain, guided) > 0.93


def test_masks_of_one_frame_do_not_change_each_other() -> None:
    placement = letterbox((96, 128), 128, 128)
    truths = [disc((96, 128), radius) for radius in (12, 25, 40)]
    logits = torch.cat([in_cells(truth, placement, seed=seed) for seed, truth in enumerate(truths)])
    guide = FrameGuide(pictured(truths[1]))
    together = placement.restore(logits, guide)
    for row, alone in zip(together, logits.split(1), strict=True):
        torch.testing.assert_close(row, placement.restore(alone, guide)[0], atol=1e-5, rtol=1e-5)


def test_cells_that_are_cut_have_the_colour_of_what_is_there() -> None:
    frame = torch.full((3, 6, 9), 100, dtype=torch.uint8)
    assert cell_colours(frame, 4).shape == (3, 2, 3)
    torch.testing.assert_close(cell_colours(frame, 4), torch.full((3, 2, 3), 100 / 255))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_any_type(dtype: torch.dtype) -> None:
    placement = letterbox((96, 128), 128, 128)
    truth = disc((96, 128), 30)
    crisp = placement.restore(in_cells(truth, placement).to(dtype), FrameGuide(pictured(truth)))
    assert crisp.dtype == torch.float32
    assert iou((crisp[0] > 0).numpy(), truth) > 0.95


# Sessions.


def test_a_session_follows_the_frame_when_it_is_told_to() -> None:
    model = load(device="cpu")
    clip = draw_clip(5, WorldConfig(height=96, width=160, frames=4))
    plain = model.open(named(clip), keep_logits=True, borders="bilinear")
    crisp, fine = (model.open(named(clip), keep_logits=True, borders="frame", border_cells=cells) for cells in (3, 7))
    for frame in clip.frames:
        answers = [session.step(frame) for session in (plain, crisp, fine)]
        for answer in answers:
            assert answer.logits is not None
            assert np.array_equal(answer.masks, answer.logits > 0)
            assert np.array_equal(answer.presence, answers[0].presence)
    assert not np.array_equal(answers[0].masks, answers[1].masks)
    assert not np.array_equal(answers[1].masks, answers[2].masks)


def test_it_goes_on_from_a_file_and_corrects_with_the_same_borders(tmp_path: Path) -> None:
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


def test_clips_frame_by_frame_and_together_agree() -> None:
    model, plain = (load(device="cpu", borders=borders) for borders in ("frame", "bilinear"))
    assert isinstance(model, Samwise)
    assert isinstance(plain, Samwise)
    clip = draw_clip(5, WorldConfig(height=96, width=128, frames=4))
    questions = [PromptedClip(clip.frames, Prompt(text)) for text in named(clip)]
    together = predict_batch(model, questions, 1)
    for question, answer in zip(questions, together, strict=True):
        assert np.mean(answer.masks != predict_clip(model, question, 1).masks) < 1e-4
    bilinear = predict_batch(plain, questions, 1)
    assert any(not np.array_equal(a.masks, b.masks) for a, b in zip(together, bilinear, strict=True))


def test_every_family_can() -> None:
    frame = scene(1)[0]
    sam2 = Sam2Segmenter(Sam2Tracker(MICRO_SAM2))
    refsam = load("refsam-miniature", device="cpu", borders="frame")
    assert sam2.open([Prompt(points=[(30, 40)])], borders="frame").step(frame).masks.shape == (1, *frame.shape[:2])
    assert refsam.open(SENTENCE).borders == "frame"
    assert refsam.open(SENTENCE).step(frame).masks.shape == (1, *frame.shape[:2])


def test_what_cannot_be_is_refused() -> None:
    model = micro_model()
    with pytest.raises(ConfigError, match=r"borders is 'sharp'; it must be 'bilinear' or 'frame'\."):
        Session(model, borders="sharp")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"border_cells is 4; it must be odd, such as 3\."):
        Session(model, border_cells=4)
    with pytest.raises(ConfigError, match="borders is 'frame', which the published protocol does not have"):
        replace(SamwiseConfig(), borders="frame", protocol="published")
    assert load(device="cpu", protocol="published", time="clip").open(SENTENCE).borders == "bilinear"
