"""Losses: in float32 under autocast, with frame weights, and without void pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refervos.model_base import ClipOutput
from refervos.samwise.cme import cme_loss
from refervos.text.t5 import T5Config
from refervos.training.losses import around_occlusions, dice_loss, frame_losses, mask_losses, sigmoid_focal_loss
from refervos.training.stages.language import LanguageSettings, LanguageStage
from refervos.training.stages.prompt_stage import best_candidate
from refervos.training.stages.recognition import RecognitionHead
from refervos.training.stages.samwise import VideoSettings, VideoStage
from training_runs import trainable_micro_model

HALF = torch.bfloat16


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=HALF):
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    """Draw logits in half precision."""
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(HALF)


MASKS = random(2, 3, 40, 50, seed=1) > 2
MASKS[0, 1] = False


def all_of_frames(logits: Tensor) -> list[Tensor]:
    losses = frame_losses(logits, logits[:, :, 0, 0], MASKS, 12)
    return [losses[name] for name in ("focal", "dice", "presence", "ious", "iou")]


LOSSES: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "dice": lambda logits: [dice_loss(logits.flatten(1), MASKS.flatten(1).to(logits.dtype), 2)],
    "focal": lambda logits: [sigmoid_focal_loss(logits.flatten(1), MASKS.flatten(1).to(logits.dtype), 2)],
    "masks": lambda logits: list(mask_losses(logits, list(MASKS))),
    "masks, resized": lambda logits: list(mask_losses(logits[..., ::2, ::2], list(MASKS))),
    "masks, published": lambda logits: list(mask_losses(logits, list(MASKS), published=True)),
    "frames": all_of_frames,
}


@pytest.mark.parametrize("name", LOSSES)
def test_mask_losses_are_computed_in_float32(name: str) -> None:
    half = random(2, 3, 40, 50).requires_grad_()
    exact = half.detach().float().requires_grad_()
    expected = LOSSES[name](exact)
    with autocast():
        found, again = LOSSES[name](half), LOSSES[name](exact)
    for reference, value, same in zip(expected, found, again, strict=True):
        assert value.dtype == same.dtype == torch.float32
        assert torch.equal(value, reference)
        assert torch.equal(same, reference)
    sum(found[:2]).backward()  # type: ignore[union-attr]
    sum(expected[:2]).backward()  # type: ignore[union-attr]
    assert half.grad is not None
    assert exact.grad is not None
    assert torch.equal(half.grad, exact.grad.to(HALF))


def test_losses_of_double_precision_logits_are_double_precision() -> None:
    assert all(loss.dtype == torch.float64 for loss in mask_losses(random(2, 3, 40, 50).double(), list(MASKS)))


def test_the_best_candidate_is_chosen_in_float32() -> None:
    """The second candidate is better by one pixel of many, less than half precision resolves."""
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    first = torch.full((64, 64), -4.0)
    second = first.clone()
    first[0, 0] = -3.0
    with autocast():
        assert best_candidate(torch.stack([first, second]).unsqueeze(0).to(HALF), mask).tolist() == [1]


def test_the_recognition_loss_is_computed_in_float32() -> None:
    head = RecognitionHead(16)
    labels = torch.stack([torch.arange(900).reshape(1, 30, 30) % size for size in head.groups], dim=-1)
    outputs: list[Tensor] = []
    head.names.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with autocast():
        found = head(random(1, 30, 30, 16).float(), labels)
    (logits,) = outputs
    assert logits.dtype == HALF  # the type of a linear layer's output under autocast
    head.names.register_forward_hook(lambda module, inputs, _: logits.float())
    assert found.dtype == torch.float32
    assert torch.equal(found, head(random(1, 30, 30, 16).float(), labels))


def test_the_language_losses_are_computed_in_float32() -> None:
    shape = T5Config(width=32, head_width=8, heads=2, layers=1, feedforward=32)
    stage = LanguageStage.build(LanguageSettings(kind="t5", t5=shape, vocabulary=300), {}, seed=1)
    batch = stage.source().collate([stage.source().draw(0, index, (1, 0, 0)) for index in range(16)])
    outputs: list[Tensor] = []
    for layer in (stage.guess, stage.summary):
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with autocast():
        found = stage(batch)
    assert {output.dtype for output in outputs} == {HALF}
    recorded = iter(list(outputs))
    for layer in (stage.guess, stage.summary):
        layer.register_forward_hook(lambda module, inputs, _: next(recorded).float())
    expected = stage(batch)
    for name in ("loss", "guess", "summary"):
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], expected[name]), name


def test_the_cme_loss_is_computed_in_float32() -> None:
    model = trainable_micro_model()
    stage = VideoStage(VideoSettings(), model)
    output: Any = ClipOutput(random(1, 1, 4, 4), None)
    output.cme_logits = random(200, 2)
    output.cme_labels = torch.arange(200) % 3 - 1
    losses = {"loss": torch.zeros(())}
    with autocast():
        stage.add_losses(losses, output, {})
    expected = cme_loss(output.cme_logits.float(), output.cme_labels)
    assert losses["cme"].dtype == torch.float32
    total, weight = losses["cme"]
    assert torch.equal(total / weight, expected)


def test_frames_around_occlusions_are_those_hidden_after_being_seen_and_the_next_four() -> None:
    areas = ["..##..####", "####......", "##.#######", ".........."]
    masks = torch.tensor([[letter == "#" for letter in row] for row in areas])[..., None, None].expand(-1, -1, 4, 4)
    found = around_occlusions(masks, 12)
    marks = ["".join("x" if value else "-" for value in row) for row in found.tolist()]
    assert marks == ["----xxxxxx", "----xxxxxx", "--xxxxx---", "----------"]


def test_frame_weights_apply_to_the_mask_losses_only() -> None:
    logits = random(2, 3, 40, 50).float()
    weight = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    plain = frame_losses(logits, logits[:, :, 0, 0], MASKS, 12)
    found = frame_losses(logits, logits[:, :, 0, 0], MASKS, 12, weight)
    assert torch.equal(found["presence"], plain["presence"])
    assert torch.equal(found["ious"], plain["ious"])
    kept = weight.bool()
    apart = frame_losses(logits[kept].unsqueeze(0), None, MASKS[kept].unsqueeze(0), 12)
    for name in ("focal", "dice"):
        torch.testing.assert_close(found[name], apart[name])
    twice = frame_losses(logits, logits[:, :, 0, 0], MASKS, 12, torch.full((2, 3), 2.0))
    for name in ("focal", "dice"):
        torch.testing.assert_close(twice[name], plain[name])


def test_frames_without_a_visible_object_are_left_out_of_dice_and_small_objects_out_of_presence() -> None:
    """The first frame has an object, the second too few pixels of it, the third none."""
    logits, score = random(1, 3, 40, 50).float(), torch.tensor([[1.0, 2.0, 3.0]])
    masks = torch.zeros(1, 3, 40, 50, dtype=torch.bool)
    masks[0, 0, :20] = True
    masks[0, 1, 0, :11] = True
    found = frame_losses(logits, score, masks, 12)
    first = frame_losses(logits[:, :1], score[:, :1], masks[:, :1], 12)
    torch.testing.assert_close(found["dice"], first["dice"])
    assert torch.equal(found["iou"], first["iou"])
    labelled = [score[0, 0], -score[0, 2]]  # of the frames with and without the object
    torch.testing.assert_close(found["presence"], -nn.functional.logsigmoid(torch.stack(labelled)).mean())


def masks_without(void: Tensor) -> Callable[[Tensor, Tensor], list[Tensor]]:
    return lambda logits, masks: list(mask_losses(logits, list(masks), list(void)))


def frames_without(void: Tensor) -> Callable[[Tensor, Tensor], list[Tensor]]:
    def losses(logits: Tensor, masks: Tensor) -> list[Tensor]:
        found = frame_losses(logits, torch.ones(2, 3), masks, 12, void=void)
        return [found[name] for name in ("focal", "dice", "presence", "ious", "iou")]

    return losses


@pytest.mark.parametrize("without", [masks_without, frames_without])
def test_logits_and_masks_under_void_pixels_change_no_loss(without: Any) -> None:
    void = random(2, 3, 40, 50, seed=2) > 3
    assert 0 < void.sum() < MASKS.sum()
    losses = without(void)
    logits = random(2, 3, 40, 50).float().requires_grad_()
    expected = losses(logits, MASKS & ~void)
    found = losses(torch.where(void, -logits, logits), MASKS | void)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    (expected[0] + expected[1]).backward()
    assert logits.grad is not None
    assert not logits.grad[void].any()
    assert logits.grad[~void].all()


@pytest.mark.parametrize("without", [masks_without, frames_without])
def test_losses_with_a_void_right_part_are_those_of_the_left_part(without: Any) -> None:
    void = torch.zeros(2, 3, 40, 50, dtype=torch.bool)
    void[..., 30:] = True
    logits, left = random(2, 3, 40, 50).float(), slice(None, 30)
    nothing = torch.zeros_like(void)[..., left]
    found = without(void)(logits, MASKS)
    for one, other in zip(found, without(nothing)(logits[..., left], MASKS[..., left]), strict=True):
        torch.testing.assert_close(one, other)


def test_losses_of_entirely_void_frames_are_zero() -> None:
    void = torch.ones(2, 3, 40, 50, dtype=torch.bool)
    logits = random(2, 3, 40, 50).float()
    found = frame_losses(logits, None, MASKS, 12, void=void)
    assert found["focal"] == found["dice"] == found["iou"][0] == 0
    assert list(mask_losses(logits, list(MASKS), list(void))) == [0, 0]
